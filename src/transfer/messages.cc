#include "transfer/messages.h"

#include <utility>

#include "transfer/codec.h"

namespace baton::transfer {
namespace {

// The first bytes of a Hello, so that a stranger's protocol is named as such and not misread.
constexpr std::uint64_t kMagic = 0x314b4e494c544142;  // "BATLINK1"

void write(Writer& w, const Key& k) {
  w.u64(k.lease.value);
  w.u32(k.attempt.value);
  w.u64(k.epoch.value);
}
void read(Reader& r, Key& k) {
  k.lease = LeaseId(r.u64());
  k.attempt = Attempt(r.u32());
  k.epoch = Epoch(r.u64());
}
void write(Writer& w, const Digest& d) {
  w.u64(d.high);
  w.u64(d.low);
}
void read(Reader& r, Digest& d) {
  d.high = r.u64();
  d.low = r.u64();
}
void write(Writer& w, const Range& x) {
  w.i32(x.begin);
  w.i32(x.end);
}
void read(Reader& r, Range& x) {
  x.begin = r.i32();
  x.end = r.i32();
  if (x.begin < 0 || x.end <= x.begin) r.fail();  // no message has a use for an empty range
}
void write(Writer& w, const Status& s) {
  w.u8(static_cast<std::uint8_t>(s.code()));
  w.string(std::string_view(s.message()).substr(0, Limits::kStringBytes));
}
void read(Reader& r, Status& s) {
  const auto code = r.u8();
  std::string message = r.string(Limits::kStringBytes);
  // A refusal always bears an error.
  if (code == 0 || code > static_cast<std::uint8_t>(Code::kInternal)) return r.fail();
  s = Status(static_cast<Code>(code), std::move(message));
}

void write(Writer& w, const wire::KvSchema& s) {
  w.i32(s.layers);
  w.i32(s.kv_heads);
  w.i32(s.head_dim);
  w.string(s.dtype);
}
void read(Reader& r, wire::KvSchema& s) {
  s.layers = r.i32();
  s.kv_heads = r.i32();
  s.head_dim = r.i32();
  s.dtype = r.string(64);
}

void write(Writer& w, const RegionPart& s) {
  w.i32(s.fd);
  w.u64(s.bytes);
  const auto& spec = s.view.spec;
  w.i32(spec.layers);
  w.i32(spec.kv_heads);
  w.i32(spec.head_dim);
  w.u8(static_cast<std::uint8_t>(spec.dtype));
  w.i32(spec.block_tokens);
  w.i32(spec.blocks);
  for (auto stride : {s.view.layer_stride, s.view.block_stride, s.view.head_stride, s.view.kind_stride, s.view.token_stride}) w.i64(stride);
  write(w, s.heads);
}
void read(Reader& r, RegionPart& s) {
  s.fd = r.i32();
  s.bytes = r.u64();
  auto& spec = s.view.spec;
  spec.layers = r.i32();
  spec.kv_heads = r.i32();
  spec.head_dim = r.i32();
  const auto dtype = r.u8();
  if (dtype > static_cast<std::uint8_t>(device::DType::kI32)) return r.fail();
  spec.dtype = static_cast<device::DType>(dtype);
  spec.block_tokens = r.i32();
  spec.blocks = r.i32();
  for (auto* stride : {&s.view.layer_stride, &s.view.block_stride, &s.view.head_stride, &s.view.kind_stride, &s.view.token_stride}) {
    *stride = r.i64();
  }
  read(r, s.heads);
}
constexpr std::size_t kPartBytes = 81;

void write(Writer& w, const SourceRegion& s) {
  BATON_CHECK(s.parts.size() <= Limits::kParts);
  w.i32(s.pid);
  w.u32(static_cast<std::uint32_t>(s.parts.size()));
  for (const RegionPart& part : s.parts) write(w, part);
}
void read(Reader& r, SourceRegion& s) {
  s.pid = r.i32();
  s.parts.resize(r.count(Limits::kParts, kPartBytes));
  if (s.parts.empty()) r.fail();
  for (RegionPart& part : s.parts) read(r, part);
}

void write(Writer& w, const FirstToken& f) {
  w.i32(f.token.choice);
  w.i32(f.token.position);
  w.i32(f.token.token);
  w.u8(f.token.logprob.has_value());
  w.f32(f.token.logprob.value_or(0));
  w.u32(static_cast<std::uint32_t>(f.token.top.size()));
  for (const auto& t : f.token.top) {
    w.i32(t.token);
    w.f32(t.logprob);
  }
  w.u8(f.finish.has_value());
  if (f.finish) {
    w.u8(static_cast<std::uint8_t>(f.finish->reason));
    w.u8(f.finish->stop_token.has_value());
    w.i32(f.finish->stop_token.value_or(0));
  }
}
void read(Reader& r, FirstToken& f) {
  f.token.choice = r.i32();
  f.token.position = r.i32();
  f.token.token = r.i32();
  const bool has_logprob = r.boolean();
  const float logprob = r.f32();
  if (has_logprob)
    f.token.logprob = logprob;
  else if (std::bit_cast<std::uint32_t>(logprob) != 0)
    r.fail();
  f.token.top.resize(r.count(Limits::kTopLogprobs, 8));
  for (auto& t : f.token.top) {
    t.token = r.i32();
    t.logprob = r.f32();
  }
  if (!r.boolean()) return;
  const auto reason = r.u8();
  if (reason > static_cast<std::uint8_t>(wire::FinishReason::kAbort)) return r.fail();
  f.finish = wire::FinishEvent{f.token.choice, static_cast<wire::FinishReason>(reason), std::nullopt};
  const bool has_stop = r.boolean();
  const TokenId stop = r.i32();
  if (has_stop)
    f.finish->stop_token = stop;
  else if (stop != 0)
    r.fail();
}

void write(Writer& w, const Hello& m) {
  w.u64(kMagic);
  w.u64(m.incarnation.value);
  for (const auto* s : {&m.name, &m.model_digest, &m.numerics_id}) w.string(*s);
  write(w, m.kv);
  write(w, m.region);
}
void read(Reader& r, Hello& m) {
  if (r.u64() != kMagic) return r.fail();
  m.incarnation = Incarnation(r.u64());
  for (auto* s : {&m.name, &m.model_digest, &m.numerics_id}) *s = r.string(Limits::kStringBytes);
  read(r, m.kv);
  read(r, m.region);
}
void write(Writer& w, const HelloAck& m) {
  w.u64(m.incarnation.value);
  w.string(m.name);
  w.string(m.numerics_id);
}
void read(Reader& r, HelloAck& m) {
  m.incarnation = Incarnation(r.u64());
  m.name = r.string(Limits::kStringBytes);
  m.numerics_id = r.string(Limits::kStringBytes);
}
void write(Writer& w, const Reject& m) { write(w, m.status); }
void read(Reader& r, Reject& m) { read(r, m.status); }
void write(Writer& w, const Attach& m) {
  write(w, m.key);
  w.string(m.request_id);
  w.i32(m.n_tokens);
  write(w, m.ids);
}
void read(Reader& r, Attach& m) {
  read(r, m.key);
  m.request_id = r.string(Limits::kStringBytes);
  m.n_tokens = r.i32();
  if (m.n_tokens <= 0 || m.n_tokens > Limits::kTokens) r.fail();
  read(r, m.ids);
}
void write(Writer& w, const Grant& m) {
  write(w, m.key);
  w.i32(m.cached_prefix);
}
void read(Reader& r, Grant& m) {
  read(r, m.key);
  m.cached_prefix = r.i32();
  if (m.cached_prefix < 0 || m.cached_prefix > Limits::kTokens) r.fail();
}
void write(Writer& w, const Refuse& m) {
  write(w, m.key);
  write(w, m.status);
}
void read(Reader& r, Refuse& m) {
  read(r, m.key);
  read(r, m.status);
}
void write(Writer& w, const Chunk& m) {
  write(w, m.key);
  w.i32(m.layer);
  write(w, m.heads);
  write(w, m.tokens);
  write(w, m.digest);
  w.string(m.locator);
}
void read(Reader& r, Chunk& m) {
  read(r, m.key);
  m.layer = r.i32();
  if (m.layer < 0) r.fail();
  read(r, m.heads);
  read(r, m.tokens);
  read(r, m.digest);
  m.locator = r.string(Limits::kLocatorBytes);
}
void write(Writer& w, const Fetched& m) {
  write(w, m.key);
  w.u64(m.bytes);
}
void read(Reader& r, Fetched& m) {
  read(r, m.key);
  m.bytes = r.u64();
}
void write(Writer& w, const Commit& m) {
  write(w, m.key);
  w.u32(static_cast<std::uint32_t>(m.first.size()));
  for (const auto& f : m.first) write(w, f);
}
void read(Reader& r, Commit& m) {
  read(r, m.key);
  m.first.resize(r.count(Limits::kChoices, 22));
  if (m.first.empty()) r.fail();
  for (auto& f : m.first) read(r, f);
}
void write(Writer& w, const Ack& m) { write(w, m.key); }
void read(Reader& r, Ack& m) { read(r, m.key); }
void write(Writer& w, const Nack& m) {
  write(w, m.key);
  write(w, m.status);
}
void read(Reader& r, Nack& m) {
  read(r, m.key);
  read(r, m.status);
}
void write(Writer& w, const Abort& m) { write(w, m.key); }
void read(Reader& r, Abort& m) { read(r, m.key); }
void write(Writer& w, const AbortAck& m) { write(w, m.key); }
void read(Reader& r, AbortAck& m) { read(r, m.key); }

constexpr std::string_view kNames[] = {"hello",   "hello_ack", "reject", "attach", "grant", "refuse",   "chunk",
                                       "fetched", "commit",    "ack",    "nack",   "abort", "abort_ack"};
static_assert(std::size(kNames) == std::variant_size_v<Message>);

// The type number of a message is its place in the variant, plus one.
template <std::size_t I = 0>
Result<Message> decode_as(std::size_t type, Reader& r) {
  if constexpr (I == std::variant_size_v<Message>) {
    return {Code::kDataLoss, "link frame of unknown type " + std::to_string(type)};
  } else {
    if (type != I + 1) return decode_as<I + 1>(type, r);
    std::variant_alternative_t<I, Message> m;
    read(r, m);
    if (!r.at_end()) return {Code::kDataLoss, "link frame '" + std::string(kNames[I]) + "' is malformed"};
    return Message(std::move(m));
  }
}

}  // namespace

std::string_view name_of(const Message& message) { return kNames[message.index()]; }

std::string encode(const Message& message) {
  Writer payload;
  std::visit([&](const auto& m) { write(payload, m); }, message);
  const std::string body = payload.take();
  BATON_CHECK(body.size() + 4 <= Limits::kFrameBytes);
  Writer head;
  head.u32(static_cast<std::uint32_t>(body.size() + 4));
  head.integer(kLinkProtocol);
  head.integer(static_cast<std::uint16_t>(message.index() + 1));
  return head.take() + body;
}

Result<Message> decode(std::string_view body) {
  Reader r(body);
  const auto version = r.integer<std::uint16_t>();
  const auto type = r.integer<std::uint16_t>();
  if (!r.ok()) return {Code::kDataLoss, "link frame shorter than its header"};
  if (version != kLinkProtocol) {
    return {Code::kDataLoss, "link protocol " + std::to_string(version) + ", this worker speaks " + std::to_string(kLinkProtocol) +
                                 ": run one version of baton"};
  }
  return decode_as(type, r);
}

Result<std::optional<Message>> FrameReader::next() {
  if (error_) return *error_;
  if (consumed_ > 0 && consumed_ * 2 >= buffer_.size()) {
    buffer_.erase(0, consumed_);
    consumed_ = 0;
  }
  const std::string_view rest = std::string_view(buffer_).substr(consumed_);
  if (rest.size() < 4) return std::optional<Message>();
  const std::size_t length = Reader(rest).u32();
  if (length < 4 || length > frame_bytes_max_) {
    error_ = Status(Code::kDataLoss, "link frame of " + std::to_string(length) + " bytes");
    return *error_;
  }
  if (rest.size() < 4 + length) return std::optional<Message>();
  auto message = decode(rest.substr(4, length));
  if (!message.ok()) {
    error_ = message.status();
    return *error_;
  }
  consumed_ += 4 + length;
  frame_bytes_max_ = Limits::kFrameBytes;
  return std::optional<Message>(std::move(message).value());
}

std::string locator_from_blocks(const BlockId* blocks, std::size_t count) {
  Writer w;
  for (std::size_t i = 0; i < count; ++i) w.i32(blocks[i].value);
  return w.take();
}

Result<std::vector<BlockId>> blocks_from_locator(std::string_view locator, std::int32_t blocks_max) {
  if (locator.size() % 4 != 0) return {Code::kDataLoss, "locator of " + std::to_string(locator.size()) + " bytes"};
  std::vector<BlockId> blocks(locator.size() / 4);
  Reader r(locator);
  for (auto& b : blocks) {
    b = BlockId(r.i32());
    if (b.value < 0 || b.value >= blocks_max) return {Code::kDataLoss, "locator names block " + std::to_string(b.value)};
  }
  return blocks;
}

}  // namespace baton::transfer
