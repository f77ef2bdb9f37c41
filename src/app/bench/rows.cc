#include "app/bench/rows.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <charconv>

#include "app/paths.h"

namespace baton::app {
namespace {

std::vector<std::string> split_cells(const std::string& line) {
  std::vector<std::string> cells;
  std::istringstream in(line);
  for (std::string cell; std::getline(in, cell, ',');) cells.push_back(cell);
  return cells;
}

}  // namespace

Result<Lines> Lines::open(const std::string& path, const char* built_in) {
  Lines lines;
  lines.name_ = path.empty() ? "the built-in data" : path;
  if (!path.empty()) {
    BATON_ASSIGN_OR_RETURN(std::string text, read_text_file(path));
    lines.in_.str(std::move(text));
  } else {
    lines.in_.str(built_in);
  }
  return lines;
}

bool Lines::next() {
  while (std::getline(in_, line_)) {
    ++number_;
    while (!line_.empty() && (line_.back() == '\r' || line_.back() == ' ')) line_.pop_back();
    if (!line_.empty()) return true;
  }
  return false;
}

Status Lines::error(const std::string& what) const {
  return Status(Code::kInvalidArgument, fmt::format("{}:{}: {}", name_, std::max(number_, 1), what));
}

Result<std::int64_t> Lines::tokens(std::string_view cell, const std::string& name) const {
  std::int64_t value = 0;
  const auto [end, failure] = std::from_chars(cell.data(), cell.data() + cell.size(), value);
  if (failure != std::errc() || end != cell.data() + cell.size() || value < 1 || value > 10'000'000)
    return error(fmt::format("{}: expected a number of tokens, 1 to 10000000, got `{}`", name, cell));
  return value;
}

Result<Columns> Columns::read(Lines& lines, const std::vector<std::string>& names) {
  const std::vector<std::string> header = lines.next() ? split_cells(lines.line()) : std::vector<std::string>();
  Columns out;
  out.names_ = names;
  for (const std::string& name : names) {
    const auto found = std::find(header.begin(), header.end(), name);
    if (found == header.end())
      return lines.error(fmt::format("expected a header with the columns {}; there is no `{}`", fmt::join(names, ","), name));
    out.at_.push_back(static_cast<std::size_t>(found - header.begin()));
  }
  return out;
}

Result<std::vector<std::string>> Columns::cells(const Lines& lines) const {
  const std::vector<std::string> cells = split_cells(lines.line());
  std::vector<std::string> out;
  for (std::size_t i = 0; i < at_.size(); ++i) {
    if (at_[i] >= cells.size()) return lines.error(fmt::format("`{}` has no {}", lines.line().substr(0, 100), names_[i]));
    out.push_back(cells[at_[i]]);
  }
  return out;
}

void PromptMaker::draw(Rng& rng, std::int64_t count, std::vector<TokenId>& ids) const {
  for (const std::size_t end = ids.size() + static_cast<std::size_t>(count); ids.size() < end;) {
    const auto id = static_cast<TokenId>(rng.below(static_cast<std::uint64_t>(vocab_)));
    if (!tokenizer_ || !tokenizer_->is_special(id)) ids.push_back(id);
  }
}

Result<BenchRequest> PromptMaker::request(std::vector<TokenId> ids, std::int64_t output_tokens) const {
  BenchRequest out;
  out.input_tokens = static_cast<std::int64_t>(ids.size());
  out.output_tokens = output_tokens;
  if (!as_text_) {
    out.ids = std::move(ids);
    return out;
  }
  if (!tokenizer_)
    return Status(Code::kInvalidArgument, "drawn prompts on the chat endpoint need the model's tokenizer: --tokenizer MODEL");
  out.prompt = tokenizer_->decode(ids, true);
  return out;
}

}  // namespace baton::app
