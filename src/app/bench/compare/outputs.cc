#include "app/bench/compare/outputs.h"

#include <cstdio>

#include "app/bench/compare/html.h"
#include "app/bench/compare/text_report.h"
#include "app/bench/result_file.h"
#include "app/paths.h"

namespace baton::app {
namespace {

// With a folder, so that a file beside it has one, too.
std::string full(const std::string& path) { return path.find('/') == std::string::npos ? "./" + path : path; }

Status check_writable(const char* flag, const std::string& path) {
  return path.empty() ? Status() : check_result_path(full(path), false).with_context(flag);
}

}  // namespace

Status OutputFiles::add_folder(const std::string& folder) {
  if (folder.empty()) return {};
  BATON_RETURN_IF_ERROR(make_dirs(folder).with_context("--output-dir"));
  const auto add = [&](std::string& path, const char* name) {
    if (path.empty()) path = folder + (folder.ends_with('/') ? "" : "/") + name;
  };
  add(json, "compare.json");
  add(markdown, "compare.md");
  add(html, "compare.html");
  return {};
}

Status OutputFiles::check() const {
  BATON_RETURN_IF_ERROR(check_writable("--json", json));
  BATON_RETURN_IF_ERROR(check_writable("--markdown", markdown));
  return check_writable("--html", html);
}

Status OutputFiles::write(const Comparison& c) const {
  Status first;
  const auto save = [&](const std::string& path, const std::string& text) {
    if (path.empty()) return;
    const Status written = write_text_file(full(path), text);
    if (written.ok()) std::fprintf(stderr, "%-9s%s\n", "saved", path.c_str());
    if (first.ok()) first = written;
  };
  save(json, to_json(c).dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
  save(markdown, app::markdown(c));
  save(html, app::html(c));
  return first;
}

}  // namespace baton::app
