#pragma once
// What two workers say to each other over a hand-off link, as binary frames. P (the source, which prefills) dials D (the target, which
// decodes).
//
//   P -> D  Hello                                   D -> P  HelloAck | Reject
//   P -> D  Attach                                  D -> P  Grant | Refuse
//   P -> D  Chunk ... Commit                        D -> P  Fetched ... Ack | Nack
//   P -> D  Abort                                   D -> P  AbortAck
//
// A frame is  u32 length | u16 version | u16 type | payload,  little-endian, `length` counting what follows it. Every count in a payload is
// checked against what is left and against a limit before anything is allocated; bytes left over are an error. A frame that does not decode
// ends its link and nothing else.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "device/kv_view.h"
#include "transfer/digest.h"
#include "wire/generate.h"
#include "wire/worker_api.h"

namespace baton::transfer {

inline constexpr std::uint16_t kLinkProtocol = 2;

struct Limits {
  static constexpr std::size_t kFrameBytes = 1u << 20;
  static constexpr std::size_t kFirstFrameBytes = 32u << 10;  // of a link: an introduction, from one who may be anybody
  static constexpr std::size_t kStringBytes = 4096;
  static constexpr std::size_t kLocatorBytes = 512u << 10;
  static constexpr std::size_t kChoices = 1024;
  static constexpr std::size_t kParts = 256;  // of a pool
  static constexpr std::size_t kTopLogprobs = wire::kLogprobsMax;
  static constexpr std::int32_t kTokens = 1 << 24;  // of a prompt
};

// A half-open range [begin, end) of tokens, heads or layers.
struct Range {
  std::int32_t begin = 0, end = 0;
  std::int32_t size() const { return end - begin; }
  bool operator==(const Range&) const = default;
};

// Host memory that holds what one rank keeps of a KV pool, and how the KV lies in it.
struct RegionPart {
  std::int32_t fd = -1;
  std::uint64_t bytes = 0;
  device::KvView view;  // its kv_heads are `heads` of the model
  Range heads;
};

// The KV pool of a process on this host: a part for each of its ranks, in their order. A block id means the same tokens in every part.
// Where ranks outnumber KV heads, several parts hold the same head; the first of them speaks for it.
struct SourceRegion {
  std::int32_t pid = 0;
  std::vector<RegionPart> parts;
  const device::KvSpec& spec() const { return parts.front().view.spec; }  // only kv_heads differs between parts
};

// Names one try of one hand-off in every message. `epoch` is D's, drawn for each grant and never used again; zero before the grant.
struct Key {
  LeaseId lease;
  Attempt attempt;
  Epoch epoch;
  bool operator==(const Key&) const = default;
};

struct Hello {
  Incarnation incarnation;
  std::string name;
  std::string model_digest, numerics_id;
  wire::KvSchema kv;
  SourceRegion region;
};
struct HelloAck {
  Incarnation incarnation;
  std::string name;
  std::string numerics_id;  // where it differs from P's, tokens may differ between workers
};
struct Reject {
  Status status;  // names the difference
};

struct Attach {
  Key key;
  std::string request_id;
  std::int32_t n_tokens = 0;  // whose KV is handed over: the prompt and what a replay has already emitted
  Digest ids;                 // digest_ids of exactly those
};
struct Grant {
  Key key;
  std::int32_t cached_prefix = 0;  // tokens that D holds already; they do not travel
};
struct Refuse {
  Key key;
  Status status;
};
// This range of a layer is in P's pool and stays there until the ack. `locator` says where, in the fabric's own terms (shm: P's block ids).
struct Chunk {
  Key key;
  std::int32_t layer = 0;
  Range heads, tokens;
  Digest digest;
  std::string locator;
};
// Cumulative: how many KV bytes of this attempt D has fetched and verified.
struct Fetched {
  Key key;
  std::uint64_t bytes = 0;
};
struct FirstToken {
  wire::TokenEvent token;
  std::optional<wire::FinishEvent> finish;
};
// All chunks have been announced; these are the first tokens.
struct Commit {
  Key key;
  std::vector<FirstToken> first;  // one a choice
};
struct Ack {
  Key key;
};
struct Nack {  // D will use nothing of this attempt
  Key key;
  Status status;
};
struct Abort {  // P's logical end
  Key key;
};
struct AbortAck {  // no fetch of this attempt touches P's memory any more: the physical end
  Key key;
};

using Message = std::variant<Hello, HelloAck, Reject, Attach, Grant, Refuse, Chunk, Fetched, Commit, Ack, Nack, Abort, AbortAck>;
std::string_view name_of(const Message& message);

// One whole frame.
std::string encode(const Message& message);
// `body` is a frame after its length field.
Result<Message> decode(std::string_view body);

// Cuts a byte stream into messages. The first error is final.
class FrameReader {
 public:
  void append(std::string_view bytes) { buffer_.append(bytes); }
  // nullopt: more bytes are needed.
  Result<std::optional<Message>> next();
  std::size_t buffered() const { return buffer_.size() - consumed_; }

 private:
  std::string buffer_;
  std::size_t consumed_ = 0;
  std::size_t frame_bytes_max_ = Limits::kFirstFrameBytes;
  std::optional<Status> error_;
};

// Block ids as a locator, and back; ids outside [0, blocks_max) are an error.
std::string locator_from_blocks(const BlockId* blocks, std::size_t count);
Result<std::vector<BlockId>> blocks_from_locator(std::string_view locator, std::int32_t blocks_max);

}  // namespace baton::transfer
