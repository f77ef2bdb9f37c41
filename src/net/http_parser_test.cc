#include "net/http_parser.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/rng.h"
#include "net/http_text.h"

namespace baton::net {
namespace {

// All that can be told from outside about what a parser made of `bytes`.
struct Outcome {
  int error_status = 0;
  bool done = false;
  std::size_t taken = 0;
  std::string text;
  bool operator==(const Outcome&) const = default;
};

std::ostream& operator<<(std::ostream& out, const Outcome& o) {
  return out << o.error_status << " done " << o.done << " taken " << o.taken << " " << o.text;
}

// Offers `bytes` in pieces whose sizes `next_size` gives, as a connection does.
template <class NextSize>
Outcome parse_request(std::string_view bytes, NextSize next_size) {
  RequestParser parser(64u << 10, 1u << 20);
  Outcome outcome;
  std::string waiting;
  for (std::size_t at = 0; at < bytes.size() && !parser.done() && parser.error_status() == 0;) {
    const std::size_t size = std::min(bytes.size() - at, next_size());
    waiting += bytes.substr(at, size);
    at += size;
    const std::size_t taken = parser.put(waiting);
    EXPECT_LE(taken, waiting.size());
    outcome.taken += taken;
    waiting.erase(0, taken);
  }
  outcome.error_status = parser.error_status();
  outcome.done = parser.done();
  if (outcome.error_status != 0) outcome.taken = 0;  // nothing follows it
  if (!outcome.done || outcome.error_status != 0) return outcome;
  outcome.text =
      std::to_string(parser.version()) + (parser.keep_alive() ? " keep " : " close ") + (parser.expects_continue() ? "100 " : "");
  const HttpRequest request = parser.take();
  outcome.text += request.method + " " + request.path + "?" + request.query + "\n";
  for (const auto& [name, value] : request.headers.fields()) outcome.text += name + "=" + value + "\n";
  outcome.text += request.body;
  return outcome;
}

// Whatever the bytes are, how they were cut by the network changes nothing.
TEST(RequestParser, OutcomeDoesNotDependOnHowBytesAreCut) {
  const std::vector<std::string> seeds = {
      "GET /a/b?c=d HTTP/1.1\r\nHost: h\r\nAccept: */*\r\n\r\n",
      "POST /v1/chat HTTP/1.1\r\nHost: h\r\nContent-Length: 11\r\nExpect: 100-continue\r\n\r\nhello world",
      "POST /x%20y HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;a=b\r\n world\r\n0\r\nT: v\r\n\r\n",
      "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
      "PUT http://h:1/p HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\n\r\n",
      "HEAD * HTTP/1.1\r\nA:b\r\n c\r\nConnection: close, x\r\n\r\n",
  };
  constexpr std::uint64_t kSeed = 1;
  const std::string special = "\r\n :;,%/?0123456789abcdefxX\t\0\x7f\x80\xff";
  int accepted = 0, refused = 0;
  for (std::uint64_t round = 0; round < 20'000; ++round) {
    Rng rng(kSeed, round);
    const auto below = [&rng](std::size_t bound) { return static_cast<std::size_t>(rng.below(bound)); };
    std::string bytes = seeds[below(seeds.size())];
    for (std::size_t edits = below(4); edits > 0; --edits) {
      const std::size_t at = below(bytes.size());
      switch (below(4)) {
        case 0:
          bytes[at] = special[below(special.size())];
          break;
        case 1:
          bytes.insert(at, 1, special[below(special.size())]);
          break;
        case 2:
          bytes.erase(at, 1 + below(3));
          break;
        case 3:
          bytes.insert(at, bytes.substr(below(bytes.size()), 1 + below(20)));
          break;
      }
      if (bytes.empty()) bytes = "G";
    }
    // Faults in a head may be told before or at its end, so there has to be one.
    bytes += "\r\n\r\n";
    const Outcome whole = parse_request(bytes, [&] { return bytes.size(); });
    const Outcome single = parse_request(bytes, [] { return std::size_t{1}; });
    const Outcome random = parse_request(bytes, [&] { return 1 + below(16); });
    ASSERT_EQ(whole, single) << "seed " << kSeed << " round " << round << "\n" << bytes;
    ASSERT_EQ(whole, random) << "seed " << kSeed << " round " << round << "\n" << bytes;
    (whole.error_status != 0 ? refused : accepted) += 1;
  }
  // The property was not tested on one kind only.
  EXPECT_GT(accepted, 2000);
  EXPECT_GT(refused, 2000);
}

TEST(HttpText, PercentDecoding) {
  std::string out;
  EXPECT_TRUE(percent_decode("/a%2Fb%c3%a4+%25", out));
  EXPECT_EQ(out, "/a/b\xc3\xa4+%");
  for (const char* bad : {"%", "%1", "a%g0", "%0g"}) EXPECT_FALSE(percent_decode(bad, out)) << bad;
}

TEST(HttpText, Dates) {
  EXPECT_EQ(http_date(784111777), "Sun, 06 Nov 1994 08:49:37 GMT");  // RFC 9110's example
  EXPECT_EQ(http_date(951782400), "Tue, 29 Feb 2000 00:00:00 GMT");
}

TEST(Headers, NamesCompareWithoutCaseAndTheFirstWins) {
  Headers headers;
  headers.add("X-A", "1");
  headers.add("x-a", "2");
  EXPECT_EQ(headers.get("x-A"), "1");
  EXPECT_EQ(headers.get("x-"), "");
}

}  // namespace
}  // namespace baton::net
