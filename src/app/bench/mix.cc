// The dataset `mix`: short chats, and beside them long prompts at fixed times, as they come to a service that is asked about documents,
// too.

#include <algorithm>
#include <cmath>

#include "app/bench/arrivals.h"
#include "app/bench/rows.h"

namespace baton::app {
namespace {

constexpr double kChatRange = 0.5;  // lengths of chats are uniform in mean * (1 +- this)

std::int64_t around(Rng& rng, std::int64_t mean) {
  const auto low = static_cast<std::int64_t>(std::floor(static_cast<double>(mean) * (1 - kChatRange)));
  const auto high = static_cast<std::int64_t>(std::ceil(static_cast<double>(mean) * (1 + kChatRange)));
  return std::max<std::int64_t>(1, low + static_cast<std::int64_t>(rng.below(static_cast<std::uint64_t>(high - low + 1))));
}

}  // namespace

Requests load_mix(const DatasetFlags& flags, const PromptMaker& maker) {
  std::vector<BenchRequest> out;
  const auto add = [&](Rng& rng, const char* kind, double at, std::int64_t input, std::int64_t output) -> Status {
    std::vector<TokenId> ids;
    maker.draw(rng, input, ids);
    BATON_ASSIGN_OR_RETURN(BenchRequest request, maker.request(std::move(ids), output));
    request.kind = kind;
    request.arrival_s = at;
    out.push_back(std::move(request));
    return {};
  };
  const auto times =
      arrival_times(static_cast<std::size_t>(flags.num_prompts), flags.mix_rate, flags.mix_burstiness, flags.seed + flags.mix_arrivals);
  Rng chats(flags.seed, 8), longs(flags.seed, 9);  // apart: the chats are the same at every rate
  for (const double at : times) {
    const std::int64_t input = around(chats, flags.mix_chat_input_len), output = around(chats, flags.mix_chat_output_len);
    BATON_RETURN_IF_ERROR(add(chats, "chat", at, input, output));
  }
  const double last = times.empty() ? 0 : times.back();
  for (int i = 1; i == 1 || i * flags.mix_long_every_s <= last; ++i)
    BATON_RETURN_IF_ERROR(
        add(longs, "long", std::min(i * flags.mix_long_every_s, last), flags.mix_long_input_len, flags.mix_long_output_len));
  std::ranges::stable_sort(out, {}, &BenchRequest::arrival_s);
  return out;
}

}  // namespace baton::app
