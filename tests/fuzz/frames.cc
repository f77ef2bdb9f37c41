// The binary frames between workers. How the network cuts a stream changes nothing; what is accepted is written again as it was, to the
// last bit; and a chunk of a peer whose Hello was accepted leads to no byte outside its region or our pool.

#include "base/rng.h"
#include "tests/fuzz/fuzz.h"
#include "transfer/messages.h"
#include "transfer/receiver.h"
#include "transfer/relayout.h"
#include "transfer/shm/copy_digest.h"

namespace baton::fuzz {
namespace {

using namespace transfer;

constexpr int kBlocks = 8;

RegionPart part(int fd, Range heads) {
  const auto view = device::KvView::dense({2, heads.size(), 4, device::DType::kBF16, 4, kBlocks});
  return {fd, view.spec.bytes(), view, heads};
}
// Two ranks, of which the second repeats a head of the first.
const std::vector<RegionPart>& own_parts() {
  static const std::vector<RegionPart> parts = {part(3, {0, 2}), part(4, {1, 2})};
  return parts;
}

LocalWorker local() {
  LocalWorker w;
  w.incarnation = Incarnation(9);
  w.model_digest = "m";
  w.kv = {2, 2, 4, "bf16"};
  w.block_tokens = 4;
  return w;
}

struct Stream {
  std::vector<Message> messages;
  std::string error;
};

template <class NextSize>
Stream read(std::string_view bytes, NextSize next_size) {
  Stream out;
  FrameReader reader;
  while (!bytes.empty() && out.error.empty()) {
    const std::size_t n = std::min<std::size_t>(bytes.size(), next_size());
    reader.append(bytes.substr(0, n));
    bytes.remove_prefix(n);
    for (;;) {
      auto message = reader.next();
      if (!message.ok()) out.error = message.status().to_string();
      if (!message.ok() || !message->has_value()) break;
      out.messages.push_back(std::move(**message));
    }
  }
  return out;
}

void check_chunk(const SourceRegion& region, const Chunk& chunk) {
  const auto blocks = blocks_from_locator(chunk.locator, region.spec().blocks);
  if (!blocks.ok()) return;
  const std::int32_t first = chunk.tokens.begin / region.spec().block_tokens * region.spec().block_tokens;
  static const std::vector<BlockId> own = [] {
    std::vector<BlockId> all;
    for (std::int32_t i = 0; i < kBlocks; ++i) all.push_back(BlockId(i));
    return all;
  }();
  const auto plan = plan_copy({region.parts, *blocks, first}, {own_parts(), own, 0}, chunk.layer, chunk.heads, chunk.tokens);
  if (!plan.ok()) return;
  // Sizes without memory.
  std::vector<std::span<const std::byte>> source;
  std::vector<std::span<std::byte>> target;
  for (const RegionPart& p : region.parts) source.emplace_back(static_cast<const std::byte*>(nullptr), p.bytes);
  for (const RegionPart& p : own_parts()) target.emplace_back(static_cast<std::byte*>(nullptr), p.bytes);
  BATON_CHECK(plan_inside(*plan, source, target));
}

template <std::size_t I = 0>
void add_messages(std::vector<std::string>& out) {
  if constexpr (I < std::variant_size_v<Message>) {
    std::variant_alternative_t<I, Message> m;
    if constexpr (requires { m.key; }) m.key = {LeaseId(0xfedcba9876543210u), Attempt(3), Epoch(99)};
    if constexpr (requires { m.status; }) m.status = Status(Code::kNotFound, "no such lease");
    if constexpr (requires { m.n_tokens; }) m.n_tokens = 20;
    if constexpr (std::is_same_v<decltype(m), Commit>) {
      FirstToken first{{1, 20, 42, -0.25f, {{42, -0.25f}, {7, -1.5f}}}, wire::FinishEvent{1, wire::FinishReason::kStop, 42}};
      m.first = {first, first};
    }
    if constexpr (std::is_same_v<decltype(m), Hello>) {
      m.model_digest = "m";
      m.kv = local().kv;
      m.region = {4242, {part(17, {0, 1}), part(18, {1, 2})}};
    }
    if constexpr (std::is_same_v<decltype(m), Chunk>) {
      const BlockId blocks[] = {BlockId(1), BlockId(5)};
      m.heads = {0, 2};
      m.tokens = {4, 12};
      m.locator = locator_from_blocks(blocks, 2);
    }
    out.push_back(encode(Message(std::move(m))));
    add_messages<I + 1>(out);
  }
}

}  // namespace

void run(std::string_view input) {
  const Stream whole = read(input, [&] { return input.size(); });
  Rng rng(hash(input));
  const Stream pieces = read(input, [&] { return 1 + rng.below(16); });
  BATON_CHECK_MSG(whole.error == pieces.error, whole.error + " / " + pieces.error);
  BATON_CHECK(whole.messages.size() == pieces.messages.size());

  std::string_view rest = input;
  const SourceRegion* region = nullptr;
  for (const Message& m : whole.messages) {
    const std::string frame = encode(m);
    BATON_CHECK_MSG(rest.starts_with(frame), std::string(name_of(m)));
    rest.remove_prefix(frame.size());
    if (const auto* hello = std::get_if<Hello>(&m)) region = check_hello(local(), *hello).ok() ? &hello->region : nullptr;
    if (const auto* chunk = std::get_if<Chunk>(&m); chunk != nullptr && region != nullptr) check_chunk(*region, *chunk);
  }
}

std::vector<std::string> seeds() {
  std::vector<std::string> out;
  add_messages(out);
  std::string all;
  for (const std::string& frame : out) all += frame;
  out.push_back(std::move(all));
  return out;
}

}  // namespace baton::fuzz
