// Traces: requests that carry the time at which they came.

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <optional>

#include "app/bench/json_field.h"
#include "app/bench/rows.h"

namespace baton::app {
namespace {

constexpr std::int64_t kMooncakeBlock = 512;         // tokens of a prompt that one of its hash_ids stands for
constexpr std::uint64_t kBlockStreams = 1ull << 32;  // the Rng streams from which blocks are drawn, by hash id

struct Row {
  double time_s = 0;  // since the trace's first row
  std::int64_t input = 0, output = 0;
};

constexpr double kLatestS = 10.0 * 365 * 86400;

// Which rows of a trace are replayed, and when.
class Window {
 public:
  explicit Window(const DatasetFlags& flags) : flags_(flags) {}

  // False once nothing that follows can be wanted.
  bool open() const { return !ended_ && taken_ < flags_.num_prompts; }

  // The row's time in the replay, -1 if it is left out. `time_s` on the trace's own clock.
  Result<double> place(const Lines& lines, double time_s, const Row& row) {
    if (!std::isfinite(time_s) || (begun_ && time_s < last_s_))
      return lines.error(fmt::format("its time is {:.6g} s before the row above; sort the trace by time", last_s_ - time_s));
    if (!begun_) first_s_ = time_s;
    begun_ = true;
    last_s_ = time_s;
    const double at = time_s - first_s_ - flags_.trace_start_s;
    if (at > kLatestS) return lines.error(fmt::format("its time is {:.3g} s after that of the first row", time_s - first_s_));
    if (at < 0) return -1.0;
    if (flags_.trace_duration_s > 0 && at >= flags_.trace_duration_s) {
      ended_ = true;
      return -1.0;
    }
    if (flags_.trace_max_len > 0 && row.input + row.output > flags_.trace_max_len) {
      ++too_long_;
      return -1.0;
    }
    ++taken_;
    return at / flags_.trace_scale;
  }

  Status finish() const {
    if (taken_ == 0)
      return Status(Code::kInvalidArgument,
                    fmt::format("the trace has no request to replay: it covers {:.0f} s, --trace-start is {:.0f}, and {} are longer than "
                                "--trace-max-len",
                                last_s_ - first_s_, flags_.trace_start_s, too_long_));
    if (too_long_ > 0)
      std::fprintf(stderr, "baton: notice: %lld requests of the trace are longer than --trace-max-len and left out\n",
                   static_cast<long long>(too_long_));
    return {};
  }

 private:
  const DatasetFlags& flags_;
  double first_s_ = 0, last_s_ = 0;
  bool begun_ = false, ended_ = false;
  std::int64_t taken_ = 0, too_long_ = 0;
};

// "2023-11-16 18:15:46.6805900", with or without a fraction, `Z` or `+00:00` after it; in seconds since `epoch`, the day of the first one.
std::optional<double> parse_timestamp(const std::string& text, std::optional<std::chrono::sys_days>& epoch) {
  int year = 0, end = 0;
  unsigned month = 0, day = 0, hour = 0, minute = 0;
  double second = 0;
  if (std::sscanf(text.c_str(), "%4d-%2u-%2u%*1[ T]%2u:%2u:%n", &year, &month, &day, &hour, &minute, &end) != 5 || end == 0)
    return std::nullopt;
  int rest = 0;
  const std::string tail = text.substr(static_cast<std::size_t>(end));
  if (tail.empty() || tail[0] < '0' || tail[0] > '9' || std::sscanf(tail.c_str(), "%lf%n", &second, &rest) != 1) return std::nullopt;
  const std::string zone = tail.substr(static_cast<std::size_t>(rest));
  const std::chrono::year_month_day date{std::chrono::year(year), std::chrono::month(month), std::chrono::day(day)};
  if (!date.ok() || hour > 23 || minute > 59 || !(second >= 0 && second < 61) || (!zone.empty() && zone != "Z" && zone != "+00:00"))
    return std::nullopt;
  const std::chrono::sys_days days(date);
  if (!epoch) epoch = days;
  return static_cast<double>((days - *epoch).count()) * 86400 + hour * 3600 + minute * 60 + second;
}

}  // namespace

Requests load_azure(const DatasetFlags& flags, const PromptMaker& maker) {
  BATON_ASSIGN_OR_RETURN(Lines lines, Lines::open(flags.path, kAzureSample));
  BATON_ASSIGN_OR_RETURN(const Columns columns, Columns::read(lines, {"TIMESTAMP", "ContextTokens", "GeneratedTokens"}));
  Window window(flags);
  std::optional<std::chrono::sys_days> epoch;
  Rng rng(flags.seed, 7);
  std::vector<BenchRequest> out;
  while (window.open() && lines.next()) {
    BATON_ASSIGN_OR_RETURN(const auto cells, columns.cells(lines));
    Row row;
    const auto time_s = parse_timestamp(cells[0], epoch);
    if (!time_s) return lines.error(fmt::format("TIMESTAMP: expected e.g. 2023-11-16 18:15:46.6805900, got `{}`", cells[0]));
    BATON_ASSIGN_OR_RETURN(row.input, lines.tokens(cells[1], "ContextTokens"));
    BATON_ASSIGN_OR_RETURN(row.output, lines.tokens(cells[2], "GeneratedTokens"));
    BATON_ASSIGN_OR_RETURN(const double at, window.place(lines, *time_s, row));
    if (at < 0) continue;
    std::vector<TokenId> ids;
    maker.draw(rng, row.input, ids);
    BATON_ASSIGN_OR_RETURN(BenchRequest request, maker.request(std::move(ids), row.output));
    request.arrival_s = at;
    out.push_back(std::move(request));
  }
  BATON_RETURN_IF_ERROR(window.finish());
  return out;
}

// {"timestamp": ms, "input_length": N, "output_length": M, "hash_ids": [one for each 512 tokens]}. A block's ids follow from seed and hash,
// so equal hashes are equal tokens and prefixes repeat as they did in the trace.
Requests load_mooncake(const DatasetFlags& flags, const PromptMaker& maker) {
  BATON_ASSIGN_OR_RETURN(Lines lines, Lines::open(flags.path, kMooncakeSample));
  Window window(flags);
  std::vector<BenchRequest> out;
  while (window.open() && lines.next()) {
    const nlohmann::json json = nlohmann::json::parse(lines.line(), nullptr, false);
    if (!json.is_object()) return lines.error("expected a JSON object with timestamp, input_length, output_length, hash_ids");
    const auto timestamp = json.find("timestamp");
    if (timestamp == json.end() || !timestamp->is_number() || !(timestamp->get<double>() >= 0))
      return lines.error("`timestamp`: expected milliseconds since the trace began, 0 or more");
    Row row;
    const auto count = [&](const char* name) { return lines.tokens(std::to_string(integer_field(json, name).value_or(0)), name); };
    BATON_ASSIGN_OR_RETURN(row.input, count("input_length"));
    BATON_ASSIGN_OR_RETURN(row.output, count("output_length"));
    const std::int64_t blocks = (row.input + kMooncakeBlock - 1) / kMooncakeBlock;
    const auto hashes = json.find("hash_ids");
    if (hashes == json.end() || !hashes->is_array() || static_cast<std::int64_t>(hashes->size()) != blocks ||
        !std::all_of(hashes->begin(), hashes->end(),
                     [](const auto& h) { return h.is_number_integer() && h.template get<std::int64_t>() >= 0; }))
      return lines.error(fmt::format("`hash_ids`: expected {} numbers, one for each 512 tokens of input_length {}", blocks, row.input));
    BATON_ASSIGN_OR_RETURN(const double at, window.place(lines, timestamp->get<double>() / 1000, row));
    if (at < 0) continue;
    std::vector<TokenId> ids;
    for (const auto& hash : *hashes) {
      Rng rng(flags.seed, kBlockStreams + hash.get<std::uint64_t>());
      maker.draw(rng, std::min(kMooncakeBlock, row.input - static_cast<std::int64_t>(ids.size())), ids);
    }
    BATON_ASSIGN_OR_RETURN(BenchRequest request, maker.request(std::move(ids), row.output));
    request.arrival_s = at;
    out.push_back(std::move(request));
  }
  BATON_RETURN_IF_ERROR(window.finish());
  return out;
}

}  // namespace baton::app
