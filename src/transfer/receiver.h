#pragma once
// The decode side of hand-offs: the ledger of leases and D's half of the protocol, as one pure class. Events and `now` go in; actions come
// out of take_actions(), to be carried out in order. It owns no memory: it decides who may use which blocks, until when, and what counts as
// proof.
//
// docs/kv-ownership.md has the state machine with the reason for each fence. In short:
//   Reserved -> Granting -> Receiving -> Verifying -> Committed -> (gone)
//   any but Committed -> Aborting -> AwaitingAttempt | (gone)
// An attempt ends logically at once (its epoch is void, nothing of it will be used) and physically when no fetch of it is in flight; blocks
// are written again or freed only after the second.

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"
#include "transfer/messages.h"

namespace baton::transfer {

using LinkId = Id<struct LinkTag, std::uint64_t>;  // numbered by the shell, never reused

// Who we are: what a Hello is compared with.
struct LocalWorker {
  Incarnation incarnation;
  std::string name;
  std::string model_digest, numerics_id;
  wire::KvSchema kv;
  int block_tokens = 0;
};

// kInvalidArgument naming the first difference that makes a pair impossible.
Status check_hello(const LocalWorker& local, const Hello& hello);

struct ReceiverOptions {
  Duration hello_timeout = std::chrono::seconds(2);     // an accepted link that does not introduce itself
  Duration reserve_timeout = std::chrono::minutes(10);  // a credit that nobody attaches to
  Duration receive_idle = std::chrono::seconds(30);     // an attached source that announces nothing
  Duration verify_timeout = std::chrono::seconds(10);   // commit to proof
  Duration retry_timeout = std::chrono::seconds(30);    // blocks held for the next attempt after one has failed
  std::size_t leases_max = 8192;
  std::size_t links_max = 1024;       // beyond, one that has not introduced itself makes room
  std::size_t fetches_max = 64;       // in flight at once, all leases together
  std::size_t chunks_max = 1u << 16;  // announced and not yet verified, of a lease
};

struct LeaseSpec {
  LeaseId lease;
  std::string request_id;
  std::int32_t n_tokens = 0;
  Digest ids;
  int first_choice = 0, choices = 1;
  TimePoint deadline = kNever;  // the request's
};

class Receiver {
 public:
  enum class State : std::uint8_t { kReserved, kGranting, kReceiving, kVerifying, kAborting, kAwaitingAttempt, kCommitted };
  static constexpr int kStates = 7;

  // --- actions
  struct SendTo {
    LinkId link;
    Message message;
  };
  struct CloseLink {
    LinkId link;
    Status why;
  };
  struct OpenPeer {  // answer: peer_opened()
    LinkId link;
    SourceRegion region;
  };
  struct TakeBlocks {  // turn the credit into blocks; answer: granted()
    LeaseId lease;
  };
  struct Fetch {  // answer: fetched(), always
    std::uint64_t id = 0;
    LinkId link;
    LeaseId lease;
    std::int32_t layer = 0;
    Range heads, tokens;
    std::string locator;
    std::vector<BlockId> target;    // blocks of the range
    std::int32_t target_first = 0;  // the token that target[0] begins with
  };
  struct CancelFetch {
    std::uint64_t id = 0;
  };
  struct StartDecode {  // everything is proven; the blocks are the engine's from here on
    LeaseId lease;
    Attempt attempt;
    std::vector<FirstToken> first;
    std::uint64_t kv_bytes = 0;
    std::int32_t cached_prefix = 0;
    wire::HandoffTimes times;
  };
  struct AttemptFailed {  // for the record: the lease goes on, or ends with an event of its own
    LeaseId lease;
    wire::HandoffTimes times;
  };
  struct LeaseFailed {  // logical end, not asked for by cancel(): tell the gateway
    LeaseId lease;
    Status status;
  };
  struct FreeLease {  // physical end of a lease that was not committed: give back its blocks, or its credit
    LeaseId lease;
  };
  using Action =
      std::variant<SendTo, CloseLink, OpenPeer, TakeBlocks, Fetch, CancelFetch, StartDecode, AttemptFailed, LeaseFailed, FreeLease>;

  Receiver(LocalWorker local, ReceiverOptions options) : local_(std::move(local)), options_(options) {}

  // --- events from the decode leg
  // The caller has taken the credit. An error leaves nothing behind.
  Status reserve(TimePoint now, LeaseSpec spec);
  // The leg has ended, for whatever reason; idempotent, in every state. After StartDecode it only forgets.
  void cancel(TimePoint now, LeaseId lease, Status why);

  // --- events from links
  void link_up(TimePoint now, LinkId link);
  void link_down(TimePoint now, LinkId link);
  void message(TimePoint now, LinkId link, Message message);

  // --- answers to actions
  struct Blocks {
    std::int32_t cached_prefix = 0;
    std::vector<BlockId> blocks;  // of all n_tokens, cached ones first
  };
  void peer_opened(TimePoint now, LinkId link, Status status);
  void granted(TimePoint now, LeaseId lease, Result<Blocks> blocks);
  void fetched(TimePoint now, std::uint64_t fetch, Result<Digest> digest);

  void tick(TimePoint now);
  TimePoint next_deadline() const;
  std::vector<Action> take_actions() { return std::exchange(actions_, {}); }

  // --- for status, tests and the simulation
  std::optional<State> state(LeaseId lease) const;
  struct Stats {
    int by_state[kStates] = {};
    std::size_t links = 0, fetches_in_flight = 0;
    std::uint64_t committed = 0, nacked = 0, stale = 0, digest_mismatches = 0, kv_bytes = 0;
    std::uint64_t violations = 0;           // chunks and commits that no sound source says
    std::uint64_t links_refused = 0;        // closed for what came over them, or did not come
    Duration oldest_held{};                 // longest time that a lease has been in its state
    Duration idle_credit{}, idle_blocks{};  // longest time without progress of a lease that has only credit; that has blocks
    TimePoint next_deadline = kNever;       // of any wait
  };
  Stats stats(TimePoint now) const;
  struct Held {
    std::string request_id, source;  // source: the name of who attached, while its link is there
    State state;
    Attempt attempt;
    Epoch epoch;
    std::int32_t blocks = 0;  // 0: credit only
    TimePoint since, progress_at, deadline;
  };
  std::vector<Held> held() const;  // by leases that are not committed

 private:
  struct Link {
    enum class Phase : std::uint8_t { kNew, kOpening, kReady } phase = Phase::kNew;
    TimePoint deadline;
    Hello hello;
  };
  struct Rect {
    Range heads, tokens;
  };
  struct Lease {
    LeaseSpec spec;
    State state = State::kReserved;
    TimePoint reserved_at, since, deadline = kNever;
    TimePoint progress_at;  // of its state, or of what arrives
    Attempt attempt{0};     // the highest that attached
    Epoch epoch;            // of the attempt in progress; zero when there is none
    LinkId link;
    bool has_blocks = false;
    Blocks blocks;
    // of the attempt in progress
    std::map<std::int32_t, std::vector<Rect>> announced;  // by layer; disjoint
    std::int64_t announced_area = 0, verified_area = 0;   // layers x heads x tokens
    std::uint64_t area_bytes = 0;                         // K and V of one of them, as its source has them
    std::size_t chunks_open = 0;
    std::vector<FirstToken> first;  // from its commit
    wire::HandoffTimes times;
    // across attempts
    std::size_t in_flight = 0;
    bool ending = false;                             // after Aborting the lease is freed
    std::optional<std::pair<LinkId, Attach>> next;   // a higher attempt that waits for quiet
    std::vector<std::pair<LinkId, Key>> abort_acks;  // owed at the physical end
    Key key() const { return {spec.lease, attempt, epoch}; }
    std::int64_t offset(TimePoint now) const { return (now - reserved_at).count(); }
  };
  struct Pending {
    LeaseId lease;
    Epoch epoch;
    Chunk chunk;
  };
  struct InFlight {
    LeaseId lease;
    Epoch epoch;
    std::int64_t area = 0;
    Digest expected;
    std::int32_t layer = 0;
    Range tokens;
  };

  void on(TimePoint now, LinkId link, Hello m);
  void on(TimePoint now, LinkId link, Attach m);
  void on(TimePoint now, LinkId link, Chunk m);
  void on(TimePoint now, LinkId link, Commit m);
  void on(TimePoint now, LinkId link, Abort m);

  Lease* find(LeaseId id);
  // The lease whose attempt in progress is named by `key` and runs over `link`, or nullptr: everything else is stale.
  Lease* current(LinkId link, const Key& key);
  void send(LinkId link, Message message);
  void close_link(LinkId link, Status why);
  void enter(TimePoint now, Lease& lease, State state);
  void begin_attempt(TimePoint now, Lease& lease, LinkId link, const Attach& m);
  void grant(TimePoint now, Lease& lease);
  Status check_chunk(const Lease& lease, const Chunk& m) const;
  Status check_first(const Lease& lease, const std::vector<FirstToken>& first) const;
  std::int64_t full_area(const Lease& lease) const;
  void commit_if_proven(TimePoint now, Lease& lease);
  void fail_attempt(TimePoint now, Lease& lease, Status why, bool tell_source);
  void end_lease(TimePoint now, Lease& lease, Status why, bool tell_gateway);
  void quiet(TimePoint now, Lease& lease);
  void pump();

  const LocalWorker local_;
  const ReceiverOptions options_;
  std::map<LinkId, Link> links_;
  std::map<LeaseId, Lease> leases_;
  std::deque<Pending> pending_;
  std::map<std::uint64_t, InFlight> fetches_;
  std::uint64_t next_fetch_ = 1, next_epoch_ = 1;
  Stats totals_;
  std::vector<Action> actions_;
};

std::string_view to_string(Receiver::State state);

}  // namespace baton::transfer
