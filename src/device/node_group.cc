#include "device/node_group.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

namespace baton::device {

// Begins each message. Hosts of one instance run the same program on the same kind of machine, which is checked when they meet.
struct alignas(64) NodeGroup::Head {
  std::uint64_t number = 0;  // of this message, from its sender to its receiver
  Operation operation{};
  std::uint64_t total = 0;  // bytes of the whole operation in this direction
};

namespace {

const char* name_of(std::uint32_t operation) {
  constexpr const char* kNames[] = {"a sum", "a gather", "a broadcast", "a vote"};
  return operation < std::size(kNames) ? kNames[operation] : "garbage";
}

// The part [begin, begin + to.size()) of the strips' rows, of which each is all strips' side by side.
void copy_strips(std::span<const Strip> strips, std::size_t row_bytes, std::size_t begin, std::span<std::byte> to) {
  std::size_t row = begin / row_bytes, skip = begin % row_bytes;
  for (std::size_t done = 0; done < to.size(); ++row) {
    for (const Strip& strip : strips) {
      if (skip >= strip.row_bytes) {
        skip -= strip.row_bytes;
        continue;
      }
      const std::size_t n = std::min(strip.row_bytes - skip, to.size() - done);
      std::memcpy(to.data() + done, strip.data + row * strip.row_bytes + skip, n);
      done += n;
      skip = 0;
    }
  }
}

}  // namespace

std::byte* place_strips(std::size_t rows, std::span<const Strip> strips, std::byte* out, std::size_t row_bytes) {
  for (const Strip& strip : strips) {
    for (std::size_t r = 0; r < rows; ++r) std::memcpy(out + r * row_bytes, strip.data + r * strip.row_bytes, strip.row_bytes);
    out += strip.row_bytes;
  }
  return out;
}

NodeGroup::NodeGroup(std::unique_ptr<NodeLinks> links)
    : links_(std::move(links)), sent_(static_cast<std::size_t>(links_->size())), received_(sent_.size()), parts_(sent_.size()) {
  BATON_CHECK(links_->message_bytes() >= sizeof(Head) + 64);
}

std::size_t NodeGroup::piece_bytes() const { return (links_->message_bytes() - sizeof(Head)) / 64 * 64; }

void NodeGroup::fail(const Status& why) {
  if (!status_.ok()) return;
  status_ = why;
  links_->close();
}

Status NodeGroup::settle(Status status) {
  if (!status.ok()) fail(status);
  return status;
}

template <class Fill>
Status NodeGroup::put(int peer, Operation operation, std::size_t total, std::size_t bytes, Fill&& fill) {
  BATON_ASSIGN_OR_RETURN(const std::span<std::byte> to, links_->outgoing(peer));
  const Head head{.number = sent_[static_cast<std::size_t>(peer)]++, .operation = operation, .total = total};
  std::memcpy(to.data(), &head, sizeof head);
  fill(to.subspan(sizeof head, bytes));
  return links_->send(peer, sizeof head + bytes);
}

Status NodeGroup::put(int peer, Operation operation, std::size_t total, std::span<const std::byte> piece) {
  return put(peer, operation, total, piece.size(), [&](std::span<std::byte> to) {
    if (!piece.empty()) std::memcpy(to.data(), piece.data(), piece.size());
  });
}

Result<NodeGroup::Piece> NodeGroup::get(int peer, Operation operation) {
  BATON_ASSIGN_OR_RETURN(const std::span<const std::byte> message, links_->receive(peer));
  Head head;
  std::memcpy(&head, message.data(), sizeof head);
  const std::uint64_t number = received_[static_cast<std::size_t>(peer)]++;
  if (head.number != number || head.operation != operation) {
    return {Code::kDataLoss, "node " + std::to_string(peer) + " came to " + name_of(static_cast<std::uint32_t>(head.operation)) +
                                 " (message " + std::to_string(head.number) + "), this one to " +
                                 name_of(static_cast<std::uint32_t>(operation)) + " (message " + std::to_string(number) + ")"};
  }
  return Piece{message.data() + sizeof head, static_cast<std::size_t>(head.total)};
}

Status NodeGroup::sum(std::span<float> x) {
  BATON_RETURN_IF_ERROR(status_);
  return settle(try_sum(x));
}

Status NodeGroup::try_sum(std::span<float> x) {
  const std::size_t floats = piece_bytes() / sizeof(float);
  for (std::size_t at = 0; at < x.size(); at += floats) {
    const std::span<float> part = x.subspan(at, std::min(floats, x.size() - at));
    for (int peer = 0; peer < size(); ++peer) {
      if (peer != node()) BATON_RETURN_IF_ERROR(put(peer, Operation::kSum, x.size_bytes(), std::as_bytes(part)));
    }
    for (int peer = 0; peer < size(); ++peer) {
      if (peer == node()) continue;
      BATON_ASSIGN_OR_RETURN(const Piece piece, get(peer, Operation::kSum));
      if (piece.total != x.size_bytes()) {
        return {Code::kDataLoss, "node " + std::to_string(peer) + " sums " + std::to_string(piece.total) + " bytes, this one " +
                                     std::to_string(x.size_bytes())};
      }
      parts_[static_cast<std::size_t>(peer)] = reinterpret_cast<const float*>(piece.data);
    }
    parts_[static_cast<std::size_t>(node())] = part.data();
    constexpr std::size_t kChunk = 512;  // stays in the first-level cache
    alignas(64) float total[kChunk];
    for (std::size_t begin = 0; begin < part.size(); begin += kChunk) {
      const std::size_t n = std::min(kChunk, part.size() - begin);
      std::copy_n(parts_[0] + begin, n, total);
      for (std::size_t other = 1; other < parts_.size(); ++other) {
        const float* y = parts_[other] + begin;
        for (std::size_t i = 0; i < n; ++i) total[i] += y[i];
      }
      std::copy_n(total, n, part.data() + begin);
    }
  }
  return {};
}

Status NodeGroup::gather(std::size_t rows, std::span<const Strip> strips, std::byte* out, std::size_t row_bytes) {
  BATON_RETURN_IF_ERROR(status_);
  return settle(try_gather(rows, strips, out, row_bytes));
}

Status NodeGroup::try_gather(std::size_t rows, std::span<const Strip> strips, std::byte* out, std::size_t row_bytes) {
  if (node() != 0) return send_strips(rows, strips);
  std::byte* const end = out + row_bytes;
  out = place_strips(rows, strips, out, row_bytes);
  for (int peer = 1; peer < size(); ++peer) BATON_RETURN_IF_ERROR(place(peer, rows, row_bytes, out, static_cast<std::size_t>(end - out)));
  if (out != end) return {Code::kDataLoss, "the columns of all nodes are not as many as the matrix has"};
  return {};
}

Status NodeGroup::send_strips(std::size_t rows, std::span<const Strip> strips) {
  std::size_t row_bytes = 0;
  for (const Strip& strip : strips) row_bytes += strip.row_bytes;
  const std::size_t total = rows * row_bytes;
  std::size_t at = 0;
  do {
    const std::size_t n = std::min(piece_bytes(), total - at);
    BATON_RETURN_IF_ERROR(put(0, Operation::kGather, total, n, [&](std::span<std::byte> to) { copy_strips(strips, row_bytes, at, to); }));
    BATON_RETURN_IF_ERROR(get(0, Operation::kGather).status());
    at += n;
  } while (at < total);
  return {};
}

// Its columns to `out`, where `room` bytes of the row are left, and the rows below; `out` then points behind them.
Status NodeGroup::place(int peer, std::size_t rows, std::size_t row_bytes, std::byte*& out, std::size_t room) {
  std::size_t at = 0, total = 0;
  do {
    BATON_RETURN_IF_ERROR(put(peer, Operation::kGather, 0, {}));
    BATON_ASSIGN_OR_RETURN(const Piece piece, get(peer, Operation::kGather));
    if (at == 0) total = piece.total;
    if (piece.total != total || total % rows != 0 || total / rows > room) {
      return {Code::kDataLoss, "node " + std::to_string(peer) + " has " + std::to_string(total) + " bytes for " + std::to_string(rows) +
                                   " rows, of which " + std::to_string(room) + " bytes each are left"};
    }
    const std::size_t width = total / rows, end = at + std::min(piece_bytes(), total - at);
    for (const std::byte* from = piece.data; at < end;) {
      const std::size_t column = at % width, n = std::min(width - column, end - at);
      std::memcpy(out + at / width * row_bytes + column, from, n);
      from += n, at += n;
    }
  } while (at < total);
  out += total / rows;
  return {};
}

Status NodeGroup::barrier() { return least(0).status(); }

Result<std::int64_t> NodeGroup::least(std::int64_t value) {
  BATON_RETURN_IF_ERROR(status_);
  const std::int64_t own = value;
  const auto vote = [&]() -> Status {
    for (int peer = 0; peer < size(); ++peer) {
      if (peer != node()) BATON_RETURN_IF_ERROR(put(peer, Operation::kLeast, sizeof own, std::as_bytes(std::span(&own, 1))));
    }
    for (int peer = 0; peer < size(); ++peer) {
      if (peer == node()) continue;
      BATON_ASSIGN_OR_RETURN(const Piece piece, get(peer, Operation::kLeast));
      std::int64_t theirs = 0;
      std::memcpy(&theirs, piece.data, sizeof theirs);
      value = std::min(value, theirs);
    }
    return {};
  };
  BATON_RETURN_IF_ERROR(settle(vote()));
  return value;
}

Status NodeGroup::broadcast(std::vector<std::int32_t>& words, std::size_t words_max) {
  BATON_RETURN_IF_ERROR(status_);
  return settle(node() == 0 ? give(words) : take(words, words_max));
}

Status NodeGroup::give(const std::vector<std::int32_t>& words) {
  const auto bytes = std::as_bytes(std::span(words));
  std::size_t at = 0;
  do {
    const auto piece = bytes.subspan(at, std::min(piece_bytes(), bytes.size() - at));
    for (int peer = 1; peer < size(); ++peer) BATON_RETURN_IF_ERROR(put(peer, Operation::kBroadcast, bytes.size(), piece));
    for (int peer = 1; peer < size(); ++peer) BATON_RETURN_IF_ERROR(get(peer, Operation::kBroadcast).status());
    at += piece.size();
  } while (at < bytes.size());
  return {};
}

Status NodeGroup::take(std::vector<std::int32_t>& words, std::size_t words_max) {
  std::size_t at = 0, total = 0;
  do {
    BATON_RETURN_IF_ERROR(put(0, Operation::kBroadcast, 0, {}));
    BATON_ASSIGN_OR_RETURN(const Piece piece, get(0, Operation::kBroadcast));
    if (at == 0) total = piece.total;
    if (piece.total != total || total % sizeof(std::int32_t) != 0 || total > words_max * sizeof(std::int32_t)) {
      return {Code::kDataLoss, "node 0 broadcasts " + std::to_string(piece.total) + " bytes where at most " +
                                   std::to_string(words_max * sizeof(std::int32_t)) + " were expected"};
    }
    words.resize(total / sizeof(std::int32_t));
    const std::size_t n = std::min(piece_bytes(), total - at);
    if (n > 0) std::memcpy(reinterpret_cast<std::byte*>(words.data()) + at, piece.data, n);
    at += n;
  } while (at < total);
  return {};
}

}  // namespace baton::device
