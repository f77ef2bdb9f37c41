#pragma once
// The planted bugs, all of them: name, file under src/, the invariant that it breaks (sim/README.md), within how many swarm seeds the
// simulation must catch it, and what is wrong. BATON_MUTANT(name) in that file is the place.

// clang-format off
#define BATON_MUTANT_TABLE(M)                                                                                                      \
  /* --- decode side of the hand-off */                                                                                            \
  M(digest_not_compared, "transfer/receiver.cc", "I6", 50, "KV is taken whatever its digest")                                      \
  M(failed_fetch_counted, "transfer/receiver.cc", "I6", 60, "coverage by count: a fetch that failed counts as one that arrived")   \
  M(committed_before_proof, "transfer/receiver.cc", "I6", 50, "committed when all is announced, not when all is verified")         \
  M(acked_before_proof, "transfer/receiver.cc", "I18", 60, "P is told to let go while its KV is still being read")                 \
  M(chunk_of_any_epoch, "transfer/receiver.cc", "I1", 60, "no epoch fence on chunks: those of an attempt that is over count")      \
  M(commit_of_any_epoch, "transfer/receiver.cc", "I1", 60, "no epoch fence on commits")                                            \
  M(granted_before_quiet, "transfer/receiver.cc", "I1", 60, "the next attempt is granted while a fetch of the last one flies")     \
  M(freed_under_fetch, "transfer/receiver.cc", "I2", 50, "a lease that ends frees its blocks at once, with fetches in flight")     \
  M(lease_lost_on_nack, "transfer/receiver.cc", "I18", 60, "a nack ends the lease, of which nobody is told")                       \
  M(stale_attach_accepted, "transfer/receiver.cc", "I1", 150, "an attach of a lower attempt, late on another link, is granted")    \
  M(attach_after_commit, "transfer/receiver.cc", "I1", 150, "an attach to a lease that decodes already is granted")                \
  M(fetched_after_abort, "transfer/receiver.cc", "I1", 60, "what was announced before an abort is fetched after it")               \
  M(first_token_lost, "worker/legs.cc", "I13", 50, "P tells the gateway of no first token")                                        \
  M(lease_kept_on_cancel, "worker/node.cc", "I9", 50, "the decode leg closes, its lease does not")                                 \
  /* --- prefill side of the hand-off */                                                                                           \
  M(announced_unwritten, "transfer/sender.cc", "I6", 50, "layers are announced in another order than they are computed")           \
  M(committed_before_last_chunk, "transfer/sender.cc", "I18", 50, "commit is said before the last chunks")                         \
  M(freed_before_ack, "worker/handoff_source.cc", "I2", 50, "P lets go of its KV when everything is announced")                    \
  M(source_kept_on_cancel, "worker/handoff_source.cc", "I4", 50, "P never lets go of the KV of a hand-off that it aborted")        \
  M(hold_kept_on_close, "worker/handoff_source.cc", "I9", 60, "KV that was retained for a leg outlives it")                        \
  M(hold_not_reclaimed, "worker/handoff_source.cc", "I24", 60, "unclaimed KV does not make room for a prompt that waits")          \
  M(head_announced_twice, "transfer/relayout.cc", "I12", 50, "each rank of P announces all heads that it holds, repeated or not")  \
  M(replica_not_filled, "transfer/relayout.cc", "I6", 50, "of D's ranks that hold the same head only the first gets its KV")       \
  /* --- engine and pool */                                                                                                        \
  M(published_at_grant, "engine/scheduler.cc", "I5", 50, "blocks enter D's prefix cache before the commit")                        \
  M(granted_prefix_not_pinned, "engine/scheduler.cc", "I2", 50, "the prefix that D grants from its cache is not pinned")           \
  M(credit_kept, "engine/scheduler.cc", "I4", 50, "credit of a lease that was never granted is not returned")                      \
  M(freed_under_step, "engine/scheduler.cc", "I2", 50, "a cancelled sequence frees its blocks while a step computes them")         \
  M(wrong_choice_finished, "engine/scheduler.cc", "I14", 60, "finish_choice ends the neighbour")                                   \
  M(credit_lent_out, "engine/scheduler_step.cc", "I23", 50, "promised blocks are given to others")                                 \
  M(published_uncomputed, "engine/scheduler_step.cc", "I5", 50, "a chunked prompt is published whole after its first chunk")       \
  M(fork_shares_partial_block, "engine/scheduler_step.cc", "I1", 50, "choices share the block that each goes on writing")          \
  M(emitted_taken_as_prompt, "engine/scheduler_step.cc", "I15", 50, "on replay penalties and seed start behind what was emitted")  \
  M(evicted_block_found, "kv/block_pool.cc", "I5", 50, "an evicted block keeps its name")                                          \
  /* --- gateway */                                                                                                                \
  M(replay_moves_prompt_end, "gateway/core_legs.cc", "I15", 50, "n_prompt of a continuation counts what was emitted")              \
  M(seed_drawn_again, "gateway/core_legs.cc", "I14", 50, "a continuation has another seed")                                        \
  M(continuation_off_by_one, "gateway/core_events.cc", "I13", 60, "tokens of a continuation stand one position too far")           \
  M(retry_keeps_attempt, "gateway/core_failures.cc", "I7", 50, "a retry has the number of the attempt that failed")                \
  M(deadline_not_sent, "gateway/core_legs.cc", "I11", 50, "a leg gets the time-out of the request, not what is left of it")        \
  M(charge_kept, "gateway/core_legs.cc", "I8", 50, "a worker stays charged for legs that have ended")                              \
  M(usage_counts_replay, "gateway/core_legs.cc", "I16", 50, "prompt tokens of a continuation count what was emitted")              \
  M(queue_head_dropped, "gateway/core.cc", "I8", 50, "a worker's death drops the first who waits for room")                        \
  M(hung_keeps_legs, "gateway/core.cc", "I31", 60, "a worker that hangs keeps its legs")                                           \
  M(draining_gets_work, "gateway/registry.cc", "I30", 60, "a worker that drains gets new legs")                                    \
  M(moved_too_early, "gateway/core_move.cc", "I30", 60, "a leg on a draining worker is cancelled before its replacement decodes")  \
  M(retries_unbounded, "gateway/core_failures.cc", "I18", 200, "failures do not count against the retry budgets")                      \
  M(cancel_not_forwarded, "gateway/gateway.cc", "I9", 50, "a leg that is cancelled stays open")                                    \
  M(old_incarnation_believed, "gateway/registry.cc", "I21", 60, "a restarted worker is taken for the one before")                  \
  M(first_token_doubled, "gateway/choice_stream.cc", "I13", 50, "a first token that both workers say is emitted twice")            \
  M(token_after_finish, "gateway/choice_stream.cc", "I13", 50, "tokens are emitted behind the finish of their choice")
// clang-format on

namespace baton::mutants {

enum class Name {
  kNone,
#define BATON_MUTANT_NAME(name, file, breaks, limit, what) name,
  BATON_MUTANT_TABLE(BATON_MUTANT_NAME)
#undef BATON_MUTANT_NAME
};

Name active();

}  // namespace baton::mutants
