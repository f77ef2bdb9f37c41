#include "app/args.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <map>
#include <numeric>

namespace baton::app {
namespace {

// vLLM flags whose effect Baton always has, or that concern what it has not; the value says whether an argument follows.
const std::map<std::string, bool> kHarmless = {
    {"--swap-space", true},
    {"--gpu-memory-utilization", true},
    {"--enforce-eager", false},
    {"--trust-remote-code", false},
    {"--disable-log-requests", false},
    {"--enable-log-requests", false},
    {"--disable-log-stats", false},
    {"--enable-prefix-caching", false},
    {"--enable-prompt-tokens-details", false},
    {"--enable-request-id-headers", false},
    {"--async-scheduling", false},
    {"--distributed-executor-backend", true},
    {"--tokenizer-mode", true},
    {"--load-format", true},
    {"--uvicorn-log-level", true},
    {"--disable-frontend-multiprocessing", false},
    {"--worker-cls", true},
    {"--disable-custom-all-reduce", false},
    {"--disable-fastapi-docs", false},
    {"--disable-uvicorn-access-log", false},
    {"--max-seq-len-to-capture", true},
    {"--device", true},
};

// --flag_name=x -> --flag-name=x; and vLLM's short names of more than one letter, which CLI11 has not.
std::string dashed(std::string arg) {
  if (arg == "-tp" || arg.starts_with("-tp=")) return "--tensor-parallel-size" + arg.substr(3);
  if (arg == "-dp" || arg.starts_with("-dp=")) return "--data-parallel-size" + arg.substr(3);
  if (!arg.starts_with("--")) return arg;
  const std::size_t end = std::min(arg.find('='), arg.size());
  std::replace(arg.begin(), arg.begin() + static_cast<long>(end), '_', '-');
  return arg;
}

std::string trim(const std::string& s) {
  const auto begin = s.find_first_not_of(" \t\r\"'"), end = s.find_last_not_of(" \t\r\"'");
  return begin == std::string::npos ? "" : s.substr(begin, end - begin + 1);
}

// A flat YAML file, `key: value` a line, lists as [a, b] or as "- item" lines, as arguments. Booleans: true gives the bare flag.
Result<std::vector<std::string>> config_args(const std::string& path) {
  std::ifstream in(path);
  if (!in) return Status(Code::kNotFound, fmt::format("--config {}: cannot open the file", path));
  std::vector<std::string> out;
  std::string line, key;
  for (int number = 1; std::getline(in, line); ++number) {
    if (const auto hash = line.find('#'); hash != std::string::npos && (hash == 0 || line[hash - 1] == ' ')) line.resize(hash);
    const std::string text = trim(line);
    if (text.empty() || text == "---") continue;
    if (text.starts_with("- ")) {
      if (key.empty()) return Status(Code::kInvalidArgument, fmt::format("{}:{}: a list item without a key", path, number));
      out.push_back(trim(text.substr(2)));
      continue;
    }
    const auto colon = text.find(':');
    if (colon == std::string::npos)
      return Status(Code::kInvalidArgument, fmt::format("{}:{}: expected `key: value`, got `{}`", path, number, text));
    key = dashed("--" + trim(text.substr(0, colon)));
    std::string value = trim(text.substr(colon + 1));
    if (value == "false") continue;
    out.push_back(key);
    if (value.empty() || value == "true") continue;
    if (value.front() == '[' && value.back() == ']') {
      value = value.substr(1, value.size() - 2);
      for (std::size_t at = 0; at <= value.size();) {
        const std::size_t comma = std::min(value.find(',', at), value.size());
        out.push_back(trim(value.substr(at, comma - at)));
        at = comma + 1;
      }
    } else {
      out.push_back(value);
    }
  }
  return out;
}

std::vector<std::string> flag_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options())
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  return names;
}

// Inserts what --config names before the rest, so that the command line wins, and drops harmless flags.
Result<std::vector<std::string>> expand(const CLI::App& app, std::vector<std::string> args) {
  for (std::string& arg : args) arg = dashed(std::move(arg));
  std::vector<std::string> out;
  const std::vector<std::string> known = flag_names(app);
  const bool takes_config = std::find(known.begin(), known.end(), "--config") != known.end();
  for (std::size_t i = 0; takes_config && i < args.size(); ++i) {
    std::string path;
    if (args[i] == "--config" && i + 1 < args.size()) path = args[i + 1];
    if (args[i].starts_with("--config=")) path = args[i].substr(9);
    if (path.empty()) continue;
    BATON_ASSIGN_OR_RETURN(out, config_args(path));
    // A flag given on the command line replaces the file's.
    for (std::size_t k = 0; k < out.size();) {
      std::size_t next = k + 1;
      while (next < out.size() && !out[next].starts_with("--")) ++next;
      const bool overridden =
          std::any_of(args.begin(), args.end(), [&](const std::string& a) { return a == out[k] || a.starts_with(out[k] + "="); });
      if (overridden) {
        out.erase(out.begin() + static_cast<long>(k), out.begin() + static_cast<long>(next));
      } else {
        k = next;
      }
    }
  }
  out.insert(out.begin(), std::make_move_iterator(args.begin()), std::make_move_iterator(args.end()));
  std::vector<std::string> kept;
  for (std::size_t i = 0; i < out.size(); ++i) {
    const std::string name = out[i].substr(0, out[i].find('='));
    const auto harmless = kHarmless.find(name);
    if (harmless == kHarmless.end() || std::find(known.begin(), known.end(), name) != known.end()) {
      kept.push_back(std::move(out[i]));
      continue;
    }
    if (harmless->second && out[i].find('=') == std::string::npos) ++i;
    std::fprintf(stderr, "baton: notice: %s has no effect here, ignored\n", name.c_str());
  }
  return kept;
}

std::size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t substitute = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substitute});
    }
  }
  return row[b.size()];
}

}  // namespace

std::optional<std::string> did_you_mean(const std::string& word, const std::vector<std::string>& candidates) {
  const std::string* best = nullptr;
  std::size_t best_distance = std::max<std::size_t>(2, word.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    const std::size_t d = edit_distance(word, candidate);
    if (d < best_distance) {
      best_distance = d;
      best = &candidate;
    }
  }
  return best ? std::optional<std::string>(*best) : std::nullopt;
}

std::optional<int> parse_args(CLI::App& app, std::vector<std::string> args) {
  auto expanded = expand(app, std::move(args));
  if (!expanded.ok()) {
    std::fprintf(stderr, "%s: error: %s\n", app.get_name().c_str(), expanded.status().message().c_str());
    return kExitUsage;
  }
  args = std::move(expanded).value();
  std::reverse(args.begin(), args.end());  // CLI11 takes a vector from its end
  try {
    app.parse(std::move(args));
  } catch (const CLI::CallForHelp& help) {
    std::fputs(app.help().c_str(), stdout);
    return 0;
  } catch (const CLI::ExtrasError& extras) {
    const std::vector<std::string> rest = app.remaining();
    std::string message = "unexpected argument";
    for (const std::string& word : rest) {
      if (word.empty()) continue;
      message = word.starts_with("-") ? "unknown flag " + word : "unexpected argument " + word;
      const auto near = word.starts_with("--") ? did_you_mean(word.substr(0, word.find('=')), flag_names(app)) : std::nullopt;
      if (near) message += "; did you mean " + *near + "?";
      break;
    }
    std::fprintf(stderr, "%s: error: %s\nTry '%s --help'.\n", app.get_name().c_str(), message.c_str(), app.get_name().c_str());
    return kExitUsage;
  } catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "%s: error: %s\nTry '%s --help'.\n", app.get_name().c_str(), error.what(), app.get_name().c_str());
    return kExitUsage;
  }
  return std::nullopt;
}

Result<std::int64_t> parse_size(const std::string& text) {
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  std::string unit(end, text.data() + text.size());
  unit.erase(std::remove(unit.begin(), unit.end(), ' '), unit.end());
  static const std::map<std::string, double> kUnits = {{"", 1},       {"k", 1e3},      {"K", 1e3},       {"M", 1e6},      {"G", 1e9},
                                                       {"B", 1},      {"kB", 1e3},     {"MB", 1e6},      {"GB", 1e9},     {"Ki", 1024},
                                                       {"KiB", 1024}, {"Mi", 1 << 20}, {"MiB", 1 << 20}, {"Gi", 1 << 30}, {"GiB", 1 << 30}};
  const auto factor = kUnits.find(unit);
  if (error != std::errc() || factor == kUnits.end() || number < 0 || number * factor->second > 9e18)
    return Status(Code::kInvalidArgument, fmt::format("`{}` is not a size; write e.g. 512MiB, 4GiB or 32k", text));
  return static_cast<std::int64_t>(number * factor->second);
}

Result<CoreSets> parse_core_sets(const std::string& text) {
  CoreSets sets;
  const char* at = text.data();
  const char* const end = at + text.size();
  const Status bad(Code::kInvalidArgument,
                   fmt::format("`{}` is not a list of cores; write e.g. 0-3,6, or 0-3:4-7 for the cores of each device", text));
  if (at < end) sets.emplace_back();
  while (at < end) {
    int first = 0;
    auto parsed = std::from_chars(at, end, first);
    if (parsed.ec != std::errc() || first < 0) return bad;
    int last = first;
    if (parsed.ptr < end && *parsed.ptr == '-') {
      parsed = std::from_chars(parsed.ptr + 1, end, last);
      if (parsed.ec != std::errc() || last < first || last - first > 4096) return bad;
    }
    for (int core = first; core <= last; ++core) sets.back().push_back(core);
    at = parsed.ptr;
    if (at == end) break;
    if ((*at != ',' && *at != ':') || at + 1 == end) return bad;
    if (*at++ == ':') sets.emplace_back();
  }
  return sets;
}

std::string format_core_sets(const CoreSets& sets) {
  std::vector<std::string> out;
  for (const auto& set : sets) out.push_back(format_cores(set));
  return fmt::format("{}", fmt::join(out, ":"));
}

// Three and more in a row as a range.
std::string format_cores(const std::vector<int>& cores) {
  std::vector<std::string> out;
  for (std::size_t i = 0; i < cores.size();) {
    std::size_t run = 1;
    while (i + run < cores.size() && cores[i + run] == cores[i] + static_cast<int>(run)) ++run;
    if (run < 3) run = 1;
    out.push_back(run == 1 ? std::to_string(cores[i]) : fmt::format("{}-{}", cores[i], cores[i + run - 1]));
    i += run;
  }
  return fmt::format("{}", fmt::join(out, ","));
}

std::string format_bytes(double bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  int unit = 0;
  while (bytes >= 1024 && unit < 4) {
    bytes /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{:.0f} B", bytes) : fmt::format("{:.{}f} {}", bytes, bytes < 10 ? 2 : bytes < 100 ? 1 : 0, kUnits[unit]);
}

int fail(const Status& status) {
  std::fprintf(stderr, "baton: error: %s\n", status.message().c_str());
  return kExitFailed;
}

}  // namespace baton::app
