#pragma once
// Collectives among the hosts of one instance. Each takes one message to every other host and one from it, or as many pairs of them as its
// bytes need; all send at the same time. Sums are made by every host for itself, in the order of the hosts, so all get the same bits
// whatever the network does.
//
// One thread a host calls the same operations in the same order everywhere. The first failure is final: the links are cut, so that the
// other hosts fail as well, and everything later returns it.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/status.h"
#include "device/node_links.h"

namespace baton::device {

// A matrix of bytes whose rows have `row_bytes`, one below the other.
struct Strip {
  const std::byte* data = nullptr;
  std::size_t row_bytes = 0;
};
// out [rows, row_bytes] := the strips side by side, from its first column on. Returns the first row's byte behind them.
std::byte* place_strips(std::size_t rows, std::span<const Strip> strips, std::byte* out, std::size_t row_bytes);

class NodeGroup {
 public:
  explicit NodeGroup(std::unique_ptr<NodeLinks> links);

  int node() const { return links_->node(); }
  int size() const { return links_->size(); }

  // x := sum over the hosts, in place. As long on all hosts.
  Status sum(std::span<float> x);
  // On node 0: out [rows, row_bytes] := the strips of all hosts side by side, in order. `out` is null elsewhere.
  Status gather(std::size_t rows, std::span<const Strip> strips, std::byte* out, std::size_t row_bytes);
  Status barrier();
  // Everywhere: words := those of node 0. More than `words_max` is kDataLoss.
  Status broadcast(std::vector<std::int32_t>& words, std::size_t words_max);
  // The least of all hosts' values.
  Result<std::int64_t> least(std::int64_t value);

  void fail(const Status& why);
  const Status& status() const { return status_; }

 private:
  enum class Operation : std::uint32_t { kSum, kGather, kBroadcast, kLeast };
  struct Head;
  std::size_t piece_bytes() const;
  template <class Fill>
  Status put(int peer, Operation operation, std::size_t total, std::size_t bytes, Fill&& fill);
  Status put(int peer, Operation operation, std::size_t total, std::span<const std::byte> piece);
  struct Piece {
    const std::byte* data = nullptr;
    std::size_t total = 0;
  };
  Result<Piece> get(int peer, Operation operation);
  Status try_sum(std::span<float> x);
  Status try_gather(std::size_t rows, std::span<const Strip> strips, std::byte* out, std::size_t row_bytes);
  Status send_strips(std::size_t rows, std::span<const Strip> strips);
  Status place(int peer, std::size_t rows, std::size_t row_bytes, std::byte*& out, std::size_t room);
  Status give(const std::vector<std::int32_t>& words);
  Status take(std::vector<std::int32_t>& words, std::size_t words_max);
  Status settle(Status status);

  const std::unique_ptr<NodeLinks> links_;
  std::vector<std::uint64_t> sent_, received_;  // messages, by peer
  std::vector<const float*> parts_;             // by node, of a sum
  Status status_;
};

}  // namespace baton::device
