// The ledger of leases under any order of events: the input's bytes choose what links, legs, engine, fabric and clock do next, and every
// action is held against a model of who owns which memory. Links say anything at any time; engine and fabric keep their contracts.

#include "transfer/receiver.h"

#include <map>
#include <set>
#include <tuple>

#include "tests/fuzz/fuzz.h"

namespace baton::fuzz {
namespace {

using namespace transfer;

constexpr int kLayers = 2, kHeads = 2, kBlockTokens = 4, kBlocksPerLease = 4, kTokensMax = kBlockTokens * kBlocksPerLease;

class Input {
 public:
  explicit Input(std::string_view bytes) : bytes_(bytes) {}
  bool empty() const { return bytes_.empty(); }
  int below(int bound) {
    if (bytes_.empty()) return 0;
    const int byte = static_cast<unsigned char>(bytes_.front());
    bytes_.remove_prefix(1);
    return byte % bound;
  }

 private:
  std::string_view bytes_;
};

LocalWorker local() {
  LocalWorker w;
  w.incarnation = Incarnation(9);
  w.name = "d";
  w.model_digest = "m";
  w.kv = {kLayers, kHeads, 4, "bf16"};
  w.block_tokens = kBlockTokens;
  return w;
}

ReceiverOptions options() {
  ReceiverOptions o;
  o.leases_max = 4;
  o.links_max = 3;
  o.fetches_max = 3;
  o.chunks_max = 6;
  return o;
}

class Run {
 public:
  explicit Run(std::string_view bytes) : input_(bytes) {}

  void all() {
    while (!input_.empty()) {
      step();
      carry_out();
    }
    finish();
  }

 private:
  struct Lease {
    int n_tokens = 0, choices = 1;
    bool taking = false, has_blocks = false, committed = false, failed = false;
    int cached = 0;
    Key key;                                   // of the grant in force
    std::set<std::tuple<int, int, int>> rows;  // (layer, head, token) that arrived right under that grant
  };

  // ---- events

  void step() {
    switch (input_.below(15)) {
      case 0:
        if (links_.size() < 5) r_.link_up(now_, *links_.insert(LinkId(next_link_++)).first);
        return;
      case 1:
        if (const auto link = some(links_)) down(*link), r_.link_down(now_, *link);
        return;
      case 2:
        return say(hello());
      case 3:
        if (const auto link = some(opening_)) {
          opening_.erase(*link);
          r_.peer_opened(now_, *link, input_.below(8) == 0 ? Status(Code::kUnavailable, "cannot map") : Status());
        }
        return;
      case 4:
        return reserve();
      case 5:
        if (const auto lease = some_lease()) cancel(*lease);
        return;
      case 6:
        return say(attach());
      case 7:
        return say(chunk());
      case 8:
        return say(commit());
      case 9:
        return say(Abort{some_key()});
      case 10:
        return answer_grant();
      case 11:
        return answer_fetch();
      case 12:
        now_ += std::chrono::milliseconds(input_.below(256));
        return r_.tick(now_);
      case 13: {
        const TimePoint next = r_.next_deadline();
        if (next == kNever) return;
        now_ = std::max(now_, next);
        r_.tick(now_);
        BATON_CHECK_MSG(r_.next_deadline() > now_, "a deadline that stays due");
        return;
      }
      default:
        return whole_handoff();
    }
  }

  void reserve() {
    LeaseSpec spec;
    spec.lease = LeaseId(next_lease_);
    spec.request_id = "r";
    spec.n_tokens = 1 + input_.below(kTokensMax);
    spec.ids = {1, 2};
    spec.choices = 1 + input_.below(3);
    spec.deadline = now_ + std::chrono::seconds(1 + input_.below(100));
    Lease lease;
    lease.n_tokens = spec.n_tokens, lease.choices = spec.choices;
    if (r_.reserve(now_, std::move(spec)).ok()) leases_[LeaseId(next_lease_++)] = std::move(lease);
  }

  void cancel(LeaseId id) {
    const bool committed = leases_.at(id).committed;
    r_.cancel(now_, id, Status(Code::kCancelled, "the leg was closed"));
    if (committed) leases_.erase(id);  // the engine's; nothing more is said of it
  }

  void answer_grant() {
    for (auto& [id, lease] : leases_) {
      if (!lease.taking) continue;
      lease.taking = false;
      if (input_.below(8) == 0) return r_.granted(now_, id, Status(Code::kResourceExhausted, "no blocks"));
      lease.has_blocks = true;
      lease.cached = input_.below(lease.n_tokens + 1);
      Receiver::Blocks blocks{lease.cached, {}};
      for (int i = 0; i < kBlocksPerLease; ++i) blocks.blocks.push_back(block(id, i));
      return r_.granted(now_, id, std::move(blocks));
    }
  }

  void answer_fetch() {
    if (fetches_.empty()) return;
    auto it = fetches_.begin();
    std::advance(it, input_.below(static_cast<int>(fetches_.size())));
    complete(it->first, input_.below(8));
  }
  void complete(std::uint64_t id, int how) {
    const auto [fetch, under] = fetches_.extract(id).mapped();
    const bool right = how > 1;
    if (auto it = leases_.find(fetch.lease); it != leases_.end() && right && it->second.key == under) {
      for (int h = fetch.heads.begin; h < fetch.heads.end; ++h) {
        for (int t = fetch.tokens.begin; t < fetch.tokens.end; ++t) it->second.rows.insert({fetch.layer, h, t});
      }
    }
    if (how == 0) return r_.fetched(now_, id, Status(Code::kCancelled, "cancelled"));
    r_.fetched(now_, id, Digest{right ? 3u : 4u, 3});
  }

  // ---- what a link may say

  void say(Message message) {
    if (const auto link = some(links_)) r_.message(now_, *link, std::move(message));
  }
  Hello hello() {
    Hello h;
    h.model_digest = input_.below(16) == 0 ? "other" : "m";
    h.kv = local().kv;
    const auto view = device::KvView::dense({kLayers, kHeads, 4, device::DType::kBF16, kBlockTokens, 8});
    h.region.parts = {{1, view.spec.bytes(), view, {0, kHeads}}};
    return h;
  }
  Key some_key() {
    const auto id = some_lease();
    if (!id) return {LeaseId(77), Attempt(1), Epoch(1)};
    Key key = leases_.at(*id).key;
    key.lease = *id;
    const int change = input_.below(16);
    if (change == 0) key.attempt = Attempt(1 + static_cast<std::uint32_t>(input_.below(4)));
    if (change == 1) key.epoch = Epoch(static_cast<std::uint64_t>(input_.below(8)));
    return key;
  }
  Attach attach() {
    Key key = some_key();
    key.attempt = Attempt(key.attempt.value + static_cast<std::uint32_t>(input_.below(3)));
    key.epoch = Epoch(0);
    const auto it = leases_.find(key.lease);
    const int n = it == leases_.end() ? 1 : it->second.n_tokens;
    return {key, "r", n, {1, input_.below(16) == 0 ? 9u : 2u}};
  }
  Chunk chunk() {
    const int begin = input_.below(kTokensMax), head = input_.below(kHeads);
    return {some_key(), input_.below(kLayers + 1), {head, head + 1 + input_.below(2)}, {begin, begin + 1 + input_.below(6)}, {3, 3}, ""};
  }
  Commit commit() {
    const Key key = some_key();
    const auto it = leases_.find(key.lease);
    Commit m{key, {}};
    for (int i = 0; it != leases_.end() && i < it->second.choices; ++i)
      m.first.push_back({{i, it->second.n_tokens, 17, std::nullopt, {}}, std::nullopt});
    return m;
  }
  // All that a well-behaved source says once it has its grant, over the link that its grant came by or any other.
  void whole_handoff() {
    const Key key = some_key();
    const auto it = leases_.find(key.lease);
    const auto link = some(links_);
    if (it == leases_.end() || !link || it->second.cached >= it->second.n_tokens) return;
    for (int layer = 0; layer < kLayers; ++layer)
      r_.message(now_, *link, Chunk{key, layer, {0, kHeads}, {it->second.cached, it->second.n_tokens}, {3, 3}, ""});
    Commit m{key, {}};
    for (int i = 0; i < it->second.choices; ++i) m.first.push_back({{i, it->second.n_tokens, 17, std::nullopt, {}}, std::nullopt});
    r_.message(now_, *link, std::move(m));
  }

  // ---- actions

  void carry_out() {
    for (auto& action : r_.take_actions()) std::visit([this](auto& a) { act(a); }, action);
    const auto stats = r_.stats(now_);
    BATON_CHECK(stats.links <= options().links_max && stats.fetches_in_flight == fetches_.size());
  }
  void act(Receiver::SendTo& a) {
    BATON_CHECK_MSG(links_.contains(a.link), "said to a link that is gone");
    if (const auto* grant = std::get_if<Grant>(&a.message)) {
      Lease& lease = leases_.at(grant->key.lease);
      BATON_CHECK(lease.has_blocks && !lease.committed && grant->cached_prefix == lease.cached);
      BATON_CHECK_MSG(grant->key.attempt > lease.key.attempt && grant->key.epoch > lease.key.epoch, "a grant that is not newer");
      for (const auto& [id, f] : fetches_) BATON_CHECK_MSG(f.first.lease != grant->key.lease, "a grant while a fetch may write");
      lease.key = grant->key;
      lease.rows.clear();
    }
    if (const auto* ack = std::get_if<Ack>(&a.message)) BATON_CHECK(leases_.at(ack->key.lease).committed);
  }
  void act(Receiver::CloseLink& a) {
    BATON_CHECK_MSG(links_.contains(a.link), "closed twice");
    down(a.link);
  }
  void act(Receiver::OpenPeer& a) { BATON_CHECK(links_.contains(a.link) && opening_.insert(a.link).second); }
  void act(Receiver::TakeBlocks& a) {
    Lease& lease = leases_.at(a.lease);
    BATON_CHECK(!lease.taking && !lease.has_blocks && !lease.committed);
    lease.taking = true;
  }
  void act(Receiver::Fetch& a) {
    Lease& lease = leases_.at(a.lease);
    BATON_CHECK(lease.has_blocks && !lease.committed && fetches_.size() < options().fetches_max);
    BATON_CHECK(a.layer >= 0 && a.layer < kLayers && a.heads.begin >= 0 && a.heads.end <= kHeads);
    BATON_CHECK(a.tokens.begin >= lease.cached && a.tokens.end <= lease.n_tokens);
    const int first = a.tokens.begin / kBlockTokens;
    BATON_CHECK(a.target_first == first * kBlockTokens);
    BATON_CHECK(static_cast<int>(a.target.size()) == (a.tokens.end + kBlockTokens - 1) / kBlockTokens - first);
    for (std::size_t i = 0; i < a.target.size(); ++i) BATON_CHECK(a.target[i] == block(a.lease, first + static_cast<int>(i)));
    for (const auto& [id, other] : fetches_) {
      const auto& f = other.first;
      const auto overlap = [](Range x, Range y) { return x.begin < y.end && y.begin < x.end; };
      const bool same = f.lease == a.lease && f.layer == a.layer && overlap(f.heads, a.heads) && overlap(f.tokens, a.tokens);
      BATON_CHECK_MSG(!same, "two fetches write the same rows");
    }
    fetches_[a.id] = {a, lease.key};
  }
  void act(Receiver::CancelFetch& a) { BATON_CHECK(fetches_.contains(a.id)); }
  void act(Receiver::StartDecode& a) {
    Lease& lease = leases_.at(a.lease);
    BATON_CHECK(lease.has_blocks && !lease.committed && !lease.failed && a.attempt == lease.key.attempt);
    BATON_CHECK_MSG(lease.rows.size() == static_cast<std::size_t>(kLayers * kHeads * (lease.n_tokens - lease.cached)),
                    "decodes what is not proven");
    BATON_CHECK(a.kv_bytes == lease.rows.size() * 2 * 8 && static_cast<int>(a.first.size()) == lease.choices);
    for (const auto& [id, f] : fetches_) BATON_CHECK_MSG(f.first.lease != a.lease, "decodes while a fetch may write");
    lease.committed = true;
  }
  void act(Receiver::AttemptFailed& a) {
    BATON_CHECK(leases_.contains(a.lease) && a.times.failure && a.times.ended_us >= a.times.attached_us);
  }
  void act(Receiver::LeaseFailed& a) {
    Lease& lease = leases_.at(a.lease);
    BATON_CHECK(!lease.committed && !lease.failed && !a.status.ok());
    lease.failed = true;
  }
  void act(Receiver::FreeLease& a) {
    const Lease& lease = leases_.at(a.lease);
    BATON_CHECK(!lease.committed && !lease.taking);
    for (const auto& [id, f] : fetches_) BATON_CHECK_MSG(f.first.lease != a.lease, "frees what a fetch may write");
    leases_.erase(a.lease);
  }

  // Whatever happened, what was begun ends once every answer is in and every leg is closed.
  void finish() {
    std::vector<LeaseId> open;
    for (const auto& [id, lease] : leases_) open.push_back(id);
    for (const LeaseId id : open) cancel(id), carry_out();
    for (bool more = true; more;) {
      more = false;
      for (auto& [id, lease] : leases_) {
        if (!lease.taking) continue;
        lease.taking = false;
        r_.granted(now_, id, Status(Code::kCancelled, "over"));
        more = true;
        break;
      }
      if (!more && !fetches_.empty()) complete(fetches_.begin()->first, 0), more = true;
      carry_out();
    }
    BATON_CHECK_MSG(leases_.empty(), "a lease never ends");
    for (const int n : r_.stats(now_).by_state) BATON_CHECK(n == 0);
  }

  void down(LinkId link) {
    links_.erase(link);
    opening_.erase(link);
  }
  static BlockId block(LeaseId lease, int i) { return BlockId(static_cast<std::int32_t>(lease.value) * kBlocksPerLease + i); }
  template <class Set>
  std::optional<LinkId> some(const Set& set) {
    if (set.empty()) return std::nullopt;
    auto it = set.begin();
    std::advance(it, input_.below(static_cast<int>(set.size())));
    return *it;
  }
  std::optional<LeaseId> some_lease() {
    if (leases_.empty()) return std::nullopt;
    auto it = leases_.begin();
    std::advance(it, input_.below(static_cast<int>(leases_.size())));
    return it->first;
  }

  Input input_;
  Receiver r_{local(), options()};
  TimePoint now_{};
  std::set<LinkId> links_, opening_;
  std::map<LeaseId, Lease> leases_;
  std::map<std::uint64_t, std::pair<Receiver::Fetch, Key>> fetches_;  // and the grant that each was made under
  std::uint64_t next_link_ = 1, next_lease_ = 1;
};

}  // namespace

void run(std::string_view input) { Run(input.substr(0, 2000)).all(); }

std::vector<std::string> seeds() {
  // Link, Hello, mapped, reserve, attach, grant, all of a hand-off, its fetches, commit; then the same with a retry, a cut, a cancel.
  const std::string begin("\x00\x02\x01\x00\x03\x00\x01\x04\x07\x00\x20\x06\x00\x05\x01\x01\x00\x0a\x01\x00", 20);
  const std::string hand_off("\x0e\x00\x05\x00\x0b\x00\x05\x0b\x00\x05", 10);
  return {begin, begin + hand_off, begin + "\x06" + hand_off + hand_off, begin + hand_off.substr(0, 4) + std::string("\x01\x00", 2),
          begin + hand_off.substr(0, 5) + std::string("\x05\x00\x0d\x0d", 4)};
}

}  // namespace baton::fuzz
