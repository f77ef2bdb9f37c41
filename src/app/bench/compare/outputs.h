#pragma once
// The files of a comparison.

#include <string>

#include "app/bench/compare/result.h"

namespace baton::app {

struct OutputFiles {
  std::string json, markdown, html;  // "": none

  // DIR/compare.json, .md and .html for those that are not named; makes the folder.
  Status add_folder(const std::string& folder);
  // Before hours of runs: an error names the file that cannot be written.
  Status check() const;
  // As many as can be; the first error.
  Status write(const Comparison& comparison) const;
};

}  // namespace baton::app
