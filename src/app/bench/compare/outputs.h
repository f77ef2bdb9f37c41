#pragma once
// The files of a comparison.

#include <string>

#include "app/bench/compare/result.h"

namespace baton::app {

struct OutputFiles {
  std::string json, markdown, html;  // "": none

  // DIR/compare.json, .md and .html for those that are not named; makes the folder.
  Status add_folder(const std::string& folder);
  // Before hours of runs: an error names the file that cannot be written, or that two of them are one.
  Status check() const;
  // Between runs, so that an end without a word loses nothing: the JSON, whole or as it was.
  Status save_so_far(const Comparison& comparison) const;
  // As many as can be; the first error. A JSON that cannot be saved goes to stderr.
  Status write(const Comparison& comparison) const;
};

}  // namespace baton::app
