#include "app/bench/compare/outputs.h"

#include <spdlog/fmt/fmt.h>

#include <cstdio>
#include <filesystem>

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

// Where a path leads, as far as it exists.
std::string target(const std::string& path) {
  std::error_code error;
  const auto whole = std::filesystem::weakly_canonical(full(path), error);
  return error ? path : whole.string();
}

std::string json_text(const Comparison& c) {
  return to_json(c).dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
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
  BATON_RETURN_IF_ERROR(check_writable("--html", html));
  const std::pair<const char*, const std::string*> all[] = {{"--json", &json}, {"--markdown", &markdown}, {"--html", &html}};
  for (const auto& [flag, path] : all)
    for (const auto& [other, other_path] : all)
      if (flag != other && !path->empty() && !other_path->empty() && target(*path) == target(*other_path))
        return Status(Code::kInvalidArgument, fmt::format("{} and {} are the same file, {}; name two", flag, other, *path));
  return {};
}

Status OutputFiles::save_so_far(const Comparison& c) const { return json.empty() ? Status() : write_text_file(full(json), json_text(c)); }

Status OutputFiles::write(const Comparison& c) const {
  Status first;
  const auto save = [&](const std::string& path, const std::string& text) {
    if (path.empty()) return true;
    const Status written = write_text_file(full(path), text);
    if (written.ok()) std::fprintf(stderr, "%-9s%s\n", "saved", path.c_str());
    if (first.ok()) first = written;
    return written.ok();
  };
  const std::string text = json_text(c);
  if (!save(json, text)) std::fputs(text.c_str(), stderr);  // hours of runs are not to be lost
  save(markdown, app::markdown(c));
  save(html, app::html(c));
  return first;
}

}  // namespace baton::app
