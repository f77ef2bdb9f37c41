#include "transfer/receiver.h"

#include <algorithm>
#include <utility>

#include "base/mutant.h"
#include "transfer/relayout.h"

namespace baton::transfer {
namespace {

// A source sends ascending ranges, which merge; the bound keeps the search for overlaps short whatever a peer sends.
constexpr std::size_t kRectsMax = 1024;

std::string text(Range r) { return "[" + std::to_string(r.begin) + ", " + std::to_string(r.end) + ")"; }
bool overlap(Range a, Range b) { return a.begin < b.end && b.begin < a.end; }
std::int64_t area(Range heads, Range tokens) { return static_cast<std::int64_t>(heads.size()) * tokens.size(); }

Status differs(std::string_view what, const std::string& theirs, const std::string& ours) {
  return {Code::kInvalidArgument, std::string(what) + " differs: prefill worker has '" + theirs + "', decode worker has '" + ours + "'"};
}
std::string text(const wire::KvSchema& s) {
  return std::to_string(s.layers) + " layers x " + std::to_string(s.kv_heads) + " KV heads x " + std::to_string(s.head_dim) + " " + s.dtype;
}

}  // namespace

std::string_view to_string(Receiver::State state) {
  constexpr std::string_view kNames[] = {"reserved", "granting", "receiving", "verifying", "aborting", "awaiting_attempt", "committed"};
  return kNames[static_cast<int>(state)];
}

Status check_hello(const LocalWorker& local, const Hello& hello) {
  if (hello.model_digest != local.model_digest) return differs("model digest", hello.model_digest, local.model_digest);
  // Another element type is converted as it arrives.
  if (!hello.kv.same_shape(local.kv)) return differs("KV schema", text(hello.kv), text(local.kv));
  return check_region(hello.region, hello.kv).with_context("prefill worker's pool");
}

// ---------------------------------------------------------------------------------------------------------------- helpers

Receiver::Lease* Receiver::find(LeaseId id) {
  auto it = leases_.find(id);
  return it == leases_.end() ? nullptr : &it->second;
}

Receiver::Lease* Receiver::current(LinkId link, const Key& key) {
  Lease* lease = find(key.lease);
  const bool matches = lease != nullptr && lease->link == link && key == lease->key() &&
                       (lease->state == State::kReceiving || lease->state == State::kVerifying);
  if (!matches) ++totals_.stale;
  return matches ? lease : nullptr;
}

void Receiver::send(LinkId link, Message message) {
  if (links_.contains(link)) actions_.push_back(SendTo{link, std::move(message)});
}

void Receiver::close_link(LinkId link, Status why) {
  ++totals_.links_refused;
  actions_.push_back(CloseLink{link, std::move(why)});
}

void Receiver::enter(TimePoint now, Lease& lease, State state) {
  const auto at_most = [&](Duration d) { return std::min(lease.spec.deadline, now + d); };
  lease.state = state;
  lease.since = lease.progress_at = now;
  switch (state) {
    case State::kReserved:
      lease.deadline = at_most(options_.reserve_timeout);
      break;
    case State::kGranting:
      lease.deadline = lease.spec.deadline;
      break;
    case State::kReceiving:
      lease.deadline = at_most(options_.receive_idle);
      break;
    case State::kVerifying:
      lease.deadline = at_most(options_.verify_timeout);
      break;
    case State::kAwaitingAttempt:
      lease.deadline = at_most(options_.retry_timeout);
      break;
    // Only a fetch's completion ends Aborting: a timer that freed blocks would free them under a copy. Committed belongs to the engine.
    case State::kAborting:
    case State::kCommitted:
      lease.deadline = kNever;
      break;
  }
}

std::int64_t Receiver::full_area(const Lease& lease) const {
  return static_cast<std::int64_t>(local_.kv.layers) * local_.kv.kv_heads * (lease.spec.n_tokens - lease.blocks.cached_prefix);
}

// ---------------------------------------------------------------------------------------------------------------- decode leg

Status Receiver::reserve(TimePoint now, LeaseSpec spec) {
  if (leases_.size() >= options_.leases_max) return {Code::kResourceExhausted, "too many leases: " + std::to_string(leases_.size())};
  BATON_CHECK(spec.n_tokens > 0 && spec.choices > 0);
  const LeaseId id = spec.lease;
  auto [it, inserted] = leases_.try_emplace(id);
  BATON_CHECK_MSG(inserted, "lease ids are drawn anew for each reservation");
  it->second.spec = std::move(spec);
  it->second.reserved_at = now;
  enter(now, it->second, State::kReserved);
  return {};
}

void Receiver::cancel(TimePoint now, LeaseId id, Status why) {
  Lease* lease = find(id);
  if (lease == nullptr) return;
  if (lease->state == State::kCommitted) {
    leases_.erase(id);
    return;
  }
  end_lease(now, *lease, std::move(why), /*tell_gateway=*/false);
  pump();
}

// ---------------------------------------------------------------------------------------------------------------- links

void Receiver::link_up(TimePoint now, LinkId link) {
  if (links_.size() >= options_.links_max) {
    // Strangers that hold every place and say nothing keep no prefill worker out: the one that was silent longest makes room.
    const auto silent = std::find_if(links_.begin(), links_.end(), [](const auto& l) { return l.second.phase == Link::Phase::kNew; });
    const LinkId out = silent == links_.end() ? link : silent->first;
    close_link(out, Status(Code::kResourceExhausted, "too many hand-off links"));
    if (out == link) return;
    link_down(now, out);
  }
  links_[link].deadline = now + options_.hello_timeout;
}

void Receiver::link_down(TimePoint now, LinkId link) {
  if (links_.erase(link) == 0) return;
  for (auto& [id, lease] : leases_) {
    if (lease.next && lease.next->first == link) lease.next.reset();
    std::erase_if(lease.abort_acks, [&](const auto& a) { return a.first == link; });
    // Verifying goes on: everything is announced, and what is proven by its digest is good whoever is gone.
    if (lease.link == link && lease.state == State::kReceiving) {
      fail_attempt(now, lease, Status(Code::kUnavailable, "the link to the prefill worker was lost"), /*tell_source=*/false);
    }
  }
  pump();
}

void Receiver::message(TimePoint now, LinkId link, Message message) {
  auto it = links_.find(link);
  if (it == links_.end()) return;
  const bool is_hello = std::holds_alternative<Hello>(message);
  const bool expected = is_hello ? it->second.phase == Link::Phase::kNew : it->second.phase == Link::Phase::kReady;
  const bool understood = expected && std::visit(
                                          [&](auto&& m) {
                                            if constexpr (requires { on(now, link, std::move(m)); }) {
                                              on(now, link, std::move(m));
                                              return true;
                                            }
                                            return false;
                                          },
                                          std::move(message));
  if (!understood) {
    close_link(link, Status(Code::kDataLoss, "unexpected message on a hand-off link"));
    link_down(now, link);
    return;
  }
  pump();
}

void Receiver::on(TimePoint now, LinkId id, Hello m) {
  Link& link = links_.at(id);
  if (Status s = check_hello(local_, m); !s.ok()) {
    send(id, Reject{s});
    close_link(id, s);
    return link_down(now, id);
  }
  link.phase = Link::Phase::kOpening;
  link.hello = std::move(m);
  actions_.push_back(OpenPeer{id, link.hello.region});
}

void Receiver::peer_opened(TimePoint now, LinkId id, Status status) {
  auto it = links_.find(id);
  if (it == links_.end()) return;
  if (!status.ok()) {
    send(id, Reject{status});
    close_link(id, status);
    return link_down(now, id);
  }
  it->second.phase = Link::Phase::kReady;
  it->second.deadline = kNever;
  send(id, HelloAck{local_.incarnation, local_.name, local_.numerics_id});
}

// ---------------------------------------------------------------------------------------------------------------- attempts

void Receiver::on(TimePoint now, LinkId link, Attach m) {
  const auto refuse = [&](Code code, std::string why) { send(link, Refuse{m.key, Status(code, std::move(why))}); };
  Lease* lease = find(m.key.lease);
  if (lease == nullptr || lease->ending) return refuse(Code::kUnavailable, "no such lease: it expired or was cancelled");
  if (lease->state == State::kCommitted && !BATON_MUTANT(attach_after_commit))
    return refuse(Code::kCancelled, "the lease is committed already");
  if (m.n_tokens != lease->spec.n_tokens || m.ids != lease->spec.ids || m.request_id != lease->spec.request_id) {
    return refuse(Code::kInvalidArgument, "the two legs are not about the same tokens");
  }
  const Attempt highest = lease->next ? lease->next->second.key.attempt : lease->attempt;
  if (m.key.attempt <= highest && !BATON_MUTANT(stale_attach_accepted)) {
    ++totals_.stale;
    return refuse(Code::kCancelled,
                  "attempt " + std::to_string(m.key.attempt.value) + " is not newer than " + std::to_string(highest.value));
  }
  const Status fenced(Code::kCancelled, "fenced by attempt " + std::to_string(m.key.attempt.value));
  switch (lease->state) {
    case State::kReserved:
    case State::kAwaitingAttempt:
    case State::kCommitted:
      return begin_attempt(now, *lease, link, m);
    case State::kReceiving:
    case State::kVerifying:
      lease->next.emplace(link, m);
      return fail_attempt(now, *lease, fenced, /*tell_source=*/true);
    case State::kGranting:
    case State::kAborting:
      if (lease->next) send(lease->next->first, Refuse{lease->next->second.key, fenced});
      lease->next.emplace(link, std::move(m));
      return;
  }
}

void Receiver::begin_attempt(TimePoint now, Lease& lease, LinkId link, const Attach& m) {
  BATON_CHECK_MSG(m.key.attempt > lease.attempt && lease.state != State::kCommitted, "attempts only grow, and none follows a commit");
  lease.attempt = m.key.attempt;
  lease.link = link;
  lease.announced.clear();
  lease.announced_area = lease.verified_area = 0;
  if (auto it = links_.find(link); it != links_.end()) lease.area_bytes = 2 * it->second.hello.region.spec().row_bytes();
  lease.chunks_open = 0;
  lease.first.clear();
  lease.times = wire::HandoffTimes();
  lease.times.attempt = lease.attempt;
  lease.times.attached_us = lease.offset(now);
  if (lease.has_blocks) return grant(now, lease);
  enter(now, lease, State::kGranting);
  actions_.push_back(TakeBlocks{lease.spec.lease});
}

void Receiver::granted(TimePoint now, LeaseId id, Result<Blocks> blocks) {
  Lease* lease = find(id);
  BATON_CHECK(lease != nullptr && lease->state == State::kGranting);
  if (blocks.ok()) {
    lease->has_blocks = true;
    lease->blocks = std::move(blocks).value();
    BATON_CHECK(lease->blocks.cached_prefix >= 0 && lease->blocks.cached_prefix <= lease->spec.n_tokens);
    BATON_CHECK(static_cast<std::int64_t>(lease->blocks.blocks.size()) * local_.block_tokens >= lease->spec.n_tokens);
  } else {
    send(lease->link, Refuse{lease->key(), blocks.status()});
  }
  if (lease->ending || lease->next) {
    if (blocks.ok())
      send(lease->link, Refuse{lease->key(), Status(Code::kCancelled, lease->ending ? "the lease has ended" : "a newer attempt attached")});
    return quiet(now, *lease);
  }
  if (!blocks.ok()) return enter(now, *lease, State::kReserved);
  if (!links_.contains(lease->link)) return enter(now, *lease, State::kAwaitingAttempt);
  grant(now, *lease);
}

void Receiver::grant(TimePoint now, Lease& lease) {
  lease.epoch = lease.times.epoch = Epoch(next_epoch_++);
  lease.times.granted_us = lease.offset(now);
  const std::size_t layers = std::min<std::size_t>(static_cast<std::size_t>(local_.kv.layers), wire::HandoffTimes::kLayersMax);
  lease.times.verified_us.assign(layers, -1);
  lease.times.verified_bytes.assign(layers, 0);
  enter(now, lease, State::kReceiving);
  send(lease.link, Grant{lease.key(), lease.blocks.cached_prefix});
}

Status Receiver::check_chunk(const Lease& lease, const Chunk& m) const {
  const auto bad = [&](const std::string& why) {
    return Status(Code::kDataLoss,
                  "chunk of layer " + std::to_string(m.layer) + ", heads " + text(m.heads) + ", tokens " + text(m.tokens) + ": " + why);
  };
  if (lease.state != State::kReceiving) return bad("announced after the commit");
  if (m.layer >= local_.kv.layers) return bad("no such layer");
  if (m.heads.end > local_.kv.kv_heads) return bad("no such head");
  if (m.tokens.begin < lease.blocks.cached_prefix || m.tokens.end > lease.spec.n_tokens) {
    return bad("outside " + text(Range{lease.blocks.cached_prefix, lease.spec.n_tokens}));
  }
  if (lease.chunks_open >= options_.chunks_max) return bad("too many unverified chunks");
  if (auto it = lease.announced.find(m.layer); it != lease.announced.end()) {
    if (it->second.size() >= kRectsMax) return bad("in too many pieces");
    for (const Rect& r : it->second) {
      if (overlap(r.heads, m.heads) && overlap(r.tokens, m.tokens)) return bad("announced twice");
    }
  }
  return {};
}

void Receiver::on(TimePoint now, LinkId link, Chunk m) {
  Lease* lease = BATON_MUTANT(chunk_of_any_epoch) ? find(m.key.lease) : current(link, m.key);
  if (lease == nullptr) return;
  if (Status s = check_chunk(*lease, m); !s.ok()) {
    ++totals_.violations;
    return fail_attempt(now, *lease, s, /*tell_source=*/true);
  }
  auto& rects = lease->announced[m.layer];
  const auto before = std::ranges::find_if(rects, [&](const Rect& r) { return r.heads == m.heads && r.tokens.end == m.tokens.begin; });
  if (before != rects.end()) {
    before->tokens.end = m.tokens.end;
  } else {
    rects.push_back({m.heads, m.tokens});
  }
  lease->announced_area += area(m.heads, m.tokens);
  ++lease->chunks_open;
  lease->progress_at = now;
  lease->deadline = std::min(lease->spec.deadline, now + options_.receive_idle);
  pending_.push_back({lease->spec.lease, lease->epoch, std::move(m)});
}

void Receiver::pump() {
  while (fetches_.size() < options_.fetches_max && !pending_.empty()) {
    Pending p = std::move(pending_.front());
    pending_.pop_front();
    Lease* lease = find(p.lease);
    // An attempt that ended leaves its queue entries behind; its epoch is void.
    if (lease == nullptr || (lease->epoch != p.epoch && !BATON_MUTANT(fetched_after_abort))) continue;
    const Range blocks = block_range(p.chunk.tokens, local_.block_tokens);
    Fetch f{next_fetch_++, lease->link, p.lease, p.chunk.layer, p.chunk.heads, p.chunk.tokens, std::move(p.chunk.locator), {}, 0};
    f.target.assign(lease->blocks.blocks.begin() + blocks.begin, lease->blocks.blocks.begin() + blocks.end);
    f.target_first = blocks.begin * local_.block_tokens;
    fetches_[f.id] = {p.lease, p.epoch, area(p.chunk.heads, p.chunk.tokens), p.chunk.digest, p.chunk.layer, p.chunk.tokens};
    ++lease->in_flight;
    actions_.push_back(std::move(f));
  }
}

void Receiver::fetched(TimePoint now, std::uint64_t fetch, Result<Digest> digest) {
  auto it = fetches_.find(fetch);
  BATON_CHECK_MSG(it != fetches_.end(), "a fetch completes once");
  const InFlight f = it->second;
  fetches_.erase(it);
  Lease* lease = find(f.lease);
  BATON_CHECK_MSG(lease != nullptr && lease->in_flight > 0, "a lease outlives its fetches");
  --lease->in_flight;
  if (lease->state == State::kAborting) {
    if (lease->in_flight == 0) quiet(now, *lease);
  } else if (lease->epoch == f.epoch) {
    const std::string where = "layer " + std::to_string(f.layer) + ", tokens " + text(f.tokens);
    if (!digest.ok() && !BATON_MUTANT(failed_fetch_counted)) {
      fail_attempt(now, *lease, digest.status().with_context("fetch of " + where), /*tell_source=*/true);
    } else if (digest.ok() && *digest != f.expected && !BATON_MUTANT(digest_not_compared)) {
      ++totals_.digest_mismatches;
      fail_attempt(now, *lease, Status(Code::kDataLoss, "digest of " + where + " does not match"), /*tell_source=*/true);
    } else {
      lease->verified_area += f.area;
      --lease->chunks_open;
      lease->progress_at = now;
      if (const auto layer = static_cast<std::size_t>(f.layer); layer < lease->times.verified_us.size()) {
        lease->times.verified_us[layer] = lease->offset(now);
        lease->times.verified_bytes[layer] += f.area * static_cast<std::int64_t>(lease->area_bytes);
      }
      send(lease->link, Fetched{lease->key(), static_cast<std::uint64_t>(lease->verified_area) * lease->area_bytes});
      if (lease->state == State::kVerifying) commit_if_proven(now, *lease);
    }
  }
  pump();
}

Status Receiver::check_first(const Lease& lease, const std::vector<FirstToken>& first) const {
  const auto& spec = lease.spec;
  bool right = first.size() == static_cast<std::size_t>(spec.choices);
  for (int i = 0; right && i < spec.choices; ++i) {
    right = first[i].token.choice == spec.first_choice + i && first[i].token.position == spec.n_tokens && first[i].token.token >= 0;
  }
  return right ? Status() : Status(Code::kDataLoss, "the commit's first tokens are not those of this request");
}

void Receiver::on(TimePoint now, LinkId link, Commit m) {
  if (Lease* done = find(m.key.lease); done != nullptr && done->state == State::kCommitted && done->key() == m.key) {
    return send(link, Ack{m.key});
  }
  Lease* lease = BATON_MUTANT(commit_of_any_epoch) ? find(m.key.lease) : current(link, m.key);
  if (lease == nullptr) return send(link, Nack{m.key, Status(Code::kCancelled, "this attempt is over")});
  if (lease->state == State::kVerifying) return;  // said twice
  Status s = check_first(*lease, m.first);
  if (s.ok() && lease->announced_area != full_area(*lease))
    s = Status(Code::kDataLoss, "the commit does not cover every layer, head and token");
  if (!s.ok()) {
    ++totals_.violations;
    return fail_attempt(now, *lease, s, /*tell_source=*/true);
  }
  lease->first = std::move(m.first);
  lease->times.commit_us = lease->offset(now);
  enter(now, *lease, State::kVerifying);
  if (BATON_MUTANT(acked_before_proof)) send(link, Ack{m.key});
  commit_if_proven(now, *lease);
}

// Announced ranges are disjoint and inside the full range, so equal areas mean that every (layer, head, token) was verified exactly once.
void Receiver::commit_if_proven(TimePoint now, Lease& lease) {
  if (lease.verified_area != full_area(lease) && !BATON_MUTANT(committed_before_proof)) return;
  if (!BATON_MUTANT(committed_before_proof)) BATON_CHECK(lease.in_flight == 0);
  enter(now, lease, State::kCommitted);
  lease.announced.clear();
  const auto bytes = static_cast<std::uint64_t>(lease.verified_area) * lease.area_bytes;
  ++totals_.committed;
  totals_.kv_bytes += bytes;
  lease.times.ended_us = lease.offset(now);
  actions_.push_back(
      StartDecode{lease.spec.lease, lease.attempt, std::move(lease.first), bytes, lease.blocks.cached_prefix, std::move(lease.times)});
  send(lease.link, Ack{lease.key()});
}

void Receiver::on(TimePoint now, LinkId link, Abort m) {
  Lease* lease = find(m.key.lease);
  const bool mine = lease != nullptr && lease->link == link && lease->attempt == m.key.attempt;
  if (lease != nullptr && lease->next && lease->next->first == link && lease->next->second.key.attempt == m.key.attempt)
    lease->next.reset();
  if (mine && (lease->state == State::kReceiving || lease->state == State::kVerifying)) {
    lease->abort_acks.emplace_back(link, m.key);
    return fail_attempt(now, *lease, Status(Code::kCancelled, "the prefill worker aborted"), /*tell_source=*/false);
  }
  if (mine && lease->state == State::kGranting) lease->link = LinkId();  // granted() then finds nobody to tell
  if (lease != nullptr && lease->state == State::kAborting && lease->in_flight > 0) {
    if (lease->abort_acks.size() < 64) lease->abort_acks.emplace_back(link, m.key);
    return;
  }
  send(link, AbortAck{m.key});
}

// ---------------------------------------------------------------------------------------------------------------- ends

void Receiver::fail_attempt(TimePoint now, Lease& lease, Status why, bool tell_source) {
  lease.times.ended_us = lease.offset(now);
  lease.times.failure = why;
  actions_.push_back(AttemptFailed{lease.spec.lease, std::move(lease.times)});
  if (tell_source) send(lease.link, Nack{lease.key(), std::move(why)});
  ++totals_.nacked;
  lease.epoch = Epoch(0);
  lease.announced.clear();
  for (const auto& [id, f] : fetches_) {
    if (f.lease == lease.spec.lease) actions_.push_back(CancelFetch{id});
  }
  enter(now, lease, State::kAborting);
  lease.ending |= tell_source && BATON_MUTANT(lease_lost_on_nack);
  if (lease.in_flight == 0 || (BATON_MUTANT(granted_before_quiet) && !lease.ending)) quiet(now, lease);
}

void Receiver::end_lease(TimePoint now, Lease& lease, Status why, bool tell_gateway) {
  if (lease.ending) return;
  lease.ending = true;
  if (tell_gateway) actions_.push_back(LeaseFailed{lease.spec.lease, why});
  if (BATON_MUTANT(freed_under_fetch)) actions_.push_back(FreeLease{lease.spec.lease});
  if (lease.next) send(lease.next->first, Refuse{lease.next->second.key, why});
  lease.next.reset();
  switch (lease.state) {
    case State::kReserved:
    case State::kAwaitingAttempt:
      return quiet(now, lease);
    case State::kReceiving:
    case State::kVerifying:
      return fail_attempt(now, lease, std::move(why), /*tell_source=*/true);
    case State::kGranting:  // granted() goes on
    case State::kAborting:  // fetched() goes on
    case State::kCommitted:
      return;
  }
}

// No fetch of this lease is in flight: its blocks may be freed or written again. The lease may be gone after this.
void Receiver::quiet(TimePoint now, Lease& lease) {
  if (!BATON_MUTANT(granted_before_quiet)) BATON_CHECK(lease.in_flight == 0);
  for (auto& [link, key] : std::exchange(lease.abort_acks, {})) send(link, AbortAck{key});
  if (lease.ending) {
    actions_.push_back(FreeLease{lease.spec.lease});
    leases_.erase(lease.spec.lease);
  } else if (lease.next) {
    const auto [link, attach] = *std::exchange(lease.next, std::nullopt);
    begin_attempt(now, lease, link, attach);
  } else {
    enter(now, lease, State::kAwaitingAttempt);
  }
}

void Receiver::tick(TimePoint now) {
  std::vector<LinkId> late_links;
  for (const auto& [id, link] : links_) {
    if (link.deadline <= now) late_links.push_back(id);
  }
  for (LinkId id : late_links) {
    close_link(id, Status(Code::kDeadlineExceeded, "no introduction in time"));
    link_down(now, id);
  }
  std::vector<LeaseId> late;
  for (const auto& [id, lease] : leases_) {
    if (lease.deadline <= now) late.push_back(id);
  }
  for (LeaseId id : late) {
    Lease& lease = leases_.at(id);
    const bool attempt_only = (lease.state == State::kReceiving || lease.state == State::kVerifying) && now < lease.spec.deadline;
    const Code code = now < lease.spec.deadline ? Code::kUnavailable : Code::kDeadlineExceeded;
    const Status why(code, "lease " + std::string(to_string(lease.state)) + " for too long");
    if (attempt_only) {
      fail_attempt(now, lease, why, /*tell_source=*/true);
    } else {
      lease.deadline = kNever;
      end_lease(now, lease, why, /*tell_gateway=*/true);
    }
  }
  pump();
}

TimePoint Receiver::next_deadline() const {
  TimePoint t = kNever;
  for (const auto& [id, link] : links_) t = std::min(t, link.deadline);
  for (const auto& [id, lease] : leases_) t = std::min(t, lease.deadline);
  return t;
}

std::optional<Receiver::State> Receiver::state(LeaseId id) const {
  auto it = leases_.find(id);
  return it == leases_.end() ? std::nullopt : std::optional(it->second.state);
}

Receiver::Stats Receiver::stats(TimePoint now) const {
  Stats s = totals_;
  s.links = links_.size();
  s.fetches_in_flight = fetches_.size();
  s.next_deadline = next_deadline();
  for (const auto& [id, lease] : leases_) {
    ++s.by_state[static_cast<int>(lease.state)];
    if (lease.state == State::kCommitted) continue;
    s.oldest_held = std::max(s.oldest_held, now - lease.since);
    Duration& idle = lease.has_blocks ? s.idle_blocks : s.idle_credit;
    idle = std::max(idle, now - lease.progress_at);
  }
  return s;
}

std::vector<Receiver::Held> Receiver::held() const {
  std::vector<Held> out;
  for (const auto& [id, lease] : leases_) {
    if (lease.state == State::kCommitted) continue;
    const auto link = links_.find(lease.link);
    out.push_back({lease.spec.request_id, link == links_.end() ? std::string() : link->second.hello.name, lease.state, lease.attempt,
                   lease.epoch, static_cast<std::int32_t>(lease.blocks.blocks.size()), lease.since, lease.progress_at, lease.deadline});
  }
  return out;
}

}  // namespace baton::transfer
