#pragma once
// An engine on the network: the reserve, prefill and decode legs over HTTP (wire/worker_api.h), and the hand-off links between workers. One
// loop, one engine, one pool. Every worker can do both legs; its role is only what it tells the gateway.
//
//   POST /internal/decode           reserve and decode, or (local_prefill) prompt and output here
//   POST /internal/prefill          compute the prompt and hand it over
//   POST /internal/finish_choice    end one choice early
//   GET  /internal/status           WorkerStatus
//   GET  /internal/kv               KvReport: who holds its KV
//   GET  /health                    200 while the engine lives
//
// Closing a leg's connection cancels it in every state. A leg that cannot be taken is refused at once: 429 or 503 with Retry-After.

#include <functional>
#include <memory>
#include <span>
#include <string>

#include "base/status.h"
#include "device/kv_view.h"
#include "engine/engine.h"
#include "net/event_loop.h"
#include "transfer/fabric.h"
#include "transfer/receiver.h"
#include "transfer/retention.h"
#include "transfer/sender.h"
#include "transfer/shm/shm_fabric.h"
#include "wire/worker_api.h"

namespace baton::worker {

#ifdef NDEBUG
inline constexpr bool kDebugBuild = false;
#else
inline constexpr bool kDebugBuild = true;
#endif

struct WorkerOptions {
  std::string name = "w0";
  wire::Role role = wire::Role::kBoth;
  std::string host = "127.0.0.1";          // both listeners; workers are not for the world
  int http_port = 0, http_listen_fd = -1;  // an fd is a listening socket that was handed over; port 0: any free one
  int link_port = 0, link_listen_fd = -1;
  int link_port_advertised = 0;  // where others dial for hand-offs, if not at link_port: a proxy, a mapped port
  Incarnation incarnation;       // drawn by the caller at process start, never zero
  std::uint64_t lease_key = 0;   // secret, drawn by the caller: lease ids come from it
  std::string model_digest, numerics_id;
  wire::KvSchema kv;
  std::int64_t max_model_len = 0;  // for status
  std::int32_t max_num_seqs = 0;
  int tensor_parallel_size = 1;                         // of the engine; for whoever asks
  bool takes_handoffs = true;                           // false: the pools here are not all of the instance's
  std::size_t legs_max = 4096;                          // at once; beyond: 429
  Duration heartbeat = std::chrono::milliseconds(250);  // a leg that had nothing to say for this long says that it is alive
  bool unbalanced_is_fatal = kDebugBuild;               // books of the KV pool that do not add up; otherwise they are logged
  transfer::ReceiverOptions receiver;
  transfer::SenderOptions sender;
  transfer::RetentionOptions retention;  // blocks_max 0: half of the pool
};

class Worker {
 public:
  // `engine` computes on the pools of `ranks`; both outlive the worker. A taken port is kUnavailable with the address in the message.
  static Result<std::unique_ptr<Worker>> create(net::EventLoop& loop, engine::Engine& engine, std::span<const transfer::RankPool> ranks,
                                                WorkerOptions options);
  virtual ~Worker() = default;
  virtual int http_port() const = 0;
  virtual int link_port() const = 0;
  virtual wire::WorkerStatus status() const = 0;
  // Takes no new legs and tells those that run, so that the gateway can have them served elsewhere; lets them go on for at most `limit`,
  // then fails them; serves KV until it is acked or given up. `done` runs once.
  virtual void drain(Duration limit, std::function<void()> done) = 0;
};

}  // namespace baton::worker
