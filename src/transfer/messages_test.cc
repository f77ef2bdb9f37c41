#include "transfer/messages.h"

#include <gtest/gtest.h>

#include "base/rng.h"

namespace baton::transfer {
namespace {

std::vector<Message> samples() {
  Hello hello;
  hello.incarnation = Incarnation(0x1122334455667788);
  hello.name = "p0";
  hello.model_digest = "sha256:abc";
  hello.numerics_id = "q4_1/int8/avx512";
  hello.kv = {30, 3, 64, "bf16"};
  hello.region = {4242,
                  {{17, 1u << 20, device::KvView::dense({30, 2, 64, device::DType::kBF16, 32, 100}), {0, 2}},
                   {18, 1u << 19, device::KvView::dense({30, 1, 64, device::DType::kBF16, 32, 100}), {2, 3}}}};
  const Key key{LeaseId(0xfedcba9876543210), Attempt(3), Epoch(99)};
  FirstToken plain{{0, 200, 17, std::nullopt, {}}, std::nullopt};
  FirstToken full{{1, 200, 42, -0.25f, {{42, -0.25f}, {7, -1.5f}}}, wire::FinishEvent{1, wire::FinishReason::kStop, 42}};
  const BlockId blocks[] = {BlockId(4), BlockId(9)};
  return {hello,
          HelloAck{Incarnation(5), "d0", "x"},
          Reject{Status(Code::kInvalidArgument, "model digest differs")},
          Attach{key, "req-1", 200, {1, 2}},
          Grant{key, 64},
          Refuse{key, Status(Code::kNotFound, "no such lease")},
          Chunk{key, 29, {0, 3}, {64, 200}, {3, 4}, locator_from_blocks(blocks, 2)},
          Fetched{key, 1u << 30},
          Commit{key, {plain, full}},
          Ack{key},
          Nack{key, Status(Code::kDataLoss, "digest")},
          Abort{key},
          AbortAck{key}};
}

// Encoding is a function of every field, so equal frames mean equal messages.
TEST(Messages, RoundTrip) {
  const auto all = samples();
  ASSERT_EQ(all.size(), std::variant_size_v<Message>);
  for (const Message& m : all) {
    SCOPED_TRACE(name_of(m));
    const std::string frame = encode(m);
    const auto back = decode(std::string_view(frame).substr(4));
    ASSERT_TRUE(back.ok()) << back.status().to_string();
    EXPECT_EQ(back->index(), m.index());
    EXPECT_EQ(encode(*back), frame);
  }
  const auto back = decode(std::string_view(encode(all[8])).substr(4));
  const auto& commit = std::get<Commit>(*back);
  EXPECT_EQ(commit.first[1].token.top[1].token, 7);
  EXPECT_EQ(*commit.first[1].finish->stop_token, 42);
  EXPECT_FALSE(commit.first[0].token.logprob.has_value());
}

// The bytes of a frame are a format that other builds read: they may not change without a new protocol number.
TEST(Messages, FormatIsFixed) {
  const std::string frame = encode(Ack{{LeaseId(0x0102030405060708), Attempt(0x0a0b0c0d), Epoch(1)}});
  const unsigned char expected[] = {24, 0, 0, 0, 2, 0, 10, 0, 8, 7, 6, 5, 4, 3, 2, 1, 0xd, 0xc, 0xb, 0xa, 1, 0, 0, 0, 0, 0, 0, 0};
  EXPECT_EQ(frame, std::string(reinterpret_cast<const char*>(expected), sizeof expected));
}

TEST(Messages, ReaderCutsAnyFragmentation) {
  std::string stream;
  for (const Message& m : samples()) stream += encode(m);
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    Rng rng(seed);
    FrameReader reader;
    std::string again;
    for (std::size_t at = 0; at < stream.size();) {
      const std::size_t n = std::min<std::size_t>(1 + rng.below(40), stream.size() - at);
      reader.append(std::string_view(stream).substr(at, n));
      at += n;
      for (;;) {
        auto m = reader.next();
        ASSERT_TRUE(m.ok()) << m.status().to_string();
        if (!m->has_value()) break;
        again += encode(**m);
      }
    }
    EXPECT_EQ(again, stream);
    EXPECT_EQ(reader.buffered(), 0u);
  }
}

// Truncated, extended, bit-flipped and random bodies: an error or a message, never more memory than the frame justifies, never a crash.
TEST(Messages, GarbageIsAnErrorValue) {
  Rng rng(1);
  int errors = 0, accepted = 0;
  for (const Message& m : samples()) {
    const std::string body = encode(m).substr(4);
    for (std::size_t n = 0; n < body.size(); ++n)
      EXPECT_FALSE(decode(std::string_view(body).substr(0, n)).ok()) << name_of(m) << " cut at " << n;
    EXPECT_FALSE(decode(body + '\0').ok());
    for (int i = 0; i < 3000; ++i) {
      std::string bad = body;
      for (std::uint64_t flips = 1 + rng.below(4); flips > 0; --flips) bad[rng.below(bad.size())] ^= static_cast<char>(1u << rng.below(8));
      const auto r = decode(bad);
      if (!r.ok()) {
        ++errors;
        continue;
      }
      ++accepted;
      EXPECT_EQ(encode(*r).substr(4), bad);  // what is accepted was said, to the last bit
    }
  }
  EXPECT_GT(errors, 1000);
  EXPECT_GT(accepted, 1000);
  for (int i = 0; i < 20000; ++i) {
    std::string noise(rng.below(200), '\0');
    for (char& c : noise) c = static_cast<char>(rng.below(256));
    if (noise.size() > 4 && i % 2 == 0) {  // past the header
      noise[0] = 1;
      noise[1] = 0;
      noise[2] = static_cast<char>(1 + rng.below(13));
      noise[3] = 0;
    }
    (void)decode(noise).ok();
  }
}

TEST(Messages, OversizedAndForeignFramesEndTheLink) {
  FrameReader huge;
  huge.append(std::string("\xff\xff\xff\x7f", 4));
  EXPECT_FALSE(huge.next().ok());
  huge.append(encode(samples()[3]));
  EXPECT_FALSE(huge.next().ok()) << "the first error is final";

  // A large frame is for those who have introduced themselves.
  const std::string large = encode(Chunk{{LeaseId(1), Attempt(1), Epoch(1)}, 0, {0, 1}, {0, 1}, {1, 2}, std::string(100'000, 'x')});
  FrameReader stranger, known;
  stranger.append(large.substr(0, 4));
  EXPECT_FALSE(stranger.next().ok()) << "refused by its length, before anything of it is kept";
  known.append(encode(samples()[0]) + large);
  for (int i = 0; i < 2; ++i) {
    const auto m = known.next();
    ASSERT_TRUE(m.ok() && m->has_value()) << m.status().to_string();
  }

  FrameReader http;
  http.append("GET / HTTP/1.1\r\n\r\n");
  EXPECT_FALSE(http.next().ok());

  std::string other = encode(samples()[9]);
  other[4] = 7;
  const auto r = decode(std::string_view(other).substr(4));
  ASSERT_FALSE(r.ok());
  EXPECT_NE(r.status().message().find("link protocol 7"), std::string::npos);
}

TEST(Messages, LocatorIsBounded) {
  const BlockId blocks[] = {BlockId(4), BlockId(9)};
  const std::string l = locator_from_blocks(blocks, 2);
  EXPECT_EQ(blocks_from_locator(l, 10)->size(), 2u);
  EXPECT_FALSE(blocks_from_locator(l, 9).ok());
  EXPECT_FALSE(blocks_from_locator(l.substr(1), 10).ok());
  EXPECT_FALSE(blocks_from_locator("\xff\xff\xff\xff", 10).ok());
}

}  // namespace
}  // namespace baton::transfer
