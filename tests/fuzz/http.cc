// HTTP parsing, of requests and of answers: how the network cuts the bytes changes nothing, and nothing is taken that was not offered.
//
// When an error is found may differ: a head that comes in pieces is looked at when its end is there. So every input is run with such an
// end.

#include "base/rng.h"
#include "base/status.h"
#include "net/http_parser.h"
#include "tests/fuzz/fuzz.h"

namespace baton::fuzz {
namespace {

using namespace net;

constexpr std::size_t kHeaderBytesMax = 2048, kBodyBytesMax = 4096;

// Offers `bytes` in pieces, as a connection does, until the parser is done with them; returns how many it took.
template <class Parser, class NextSize, class Over>
std::size_t offer(Parser& parser, std::string_view bytes, NextSize next_size, Over over) {
  std::size_t taken = 0, offered = 0;
  while (offered < bytes.size() && !over()) {
    offered = std::min(bytes.size(), offered + next_size());
    while (!over()) {
      const std::size_t n = parser.put(bytes.substr(taken, offered - taken));
      BATON_CHECK(n <= offered - taken);
      taken += n;
      if (n == 0 || taken == offered) break;
    }
  }
  return taken;
}

void append(std::string& text, const Headers& headers) {
  for (const auto& [name, value] : headers.fields()) text += name + "=" + value + "\n";
}

// All that can be told from outside about a stream of requests.
template <class NextSize>
std::string requests(std::string_view bytes, NextSize next_size) {
  std::string out;
  while (!bytes.empty()) {
    RequestParser parser(kHeaderBytesMax, kBodyBytesMax);
    const std::size_t taken = offer(parser, bytes, next_size, [&] { return parser.done() || parser.error_status() != 0; });
    if (parser.error_status() != 0) {
      BATON_CHECK(!parser.error_message().empty());
      return out + "error " + std::to_string(parser.error_status());
    }
    if (!parser.done()) return out + "more";
    out += std::to_string(parser.version()) + (parser.keep_alive() ? " keep " : " close ") + (parser.expects_continue() ? "100 " : "");
    const HttpRequest request = parser.take();
    BATON_CHECK(request.body.size() <= kBodyBytesMax);
    out += request.method + " " + request.path + "?" + request.query + "\n";
    append(out, request.headers);
    out += request.body + "\n";
    BATON_CHECK(taken > 0);
    bytes.remove_prefix(taken);
  }
  return out;
}

template <class NextSize>
std::string answer(std::string_view bytes, bool head_only, NextSize next_size) {
  std::string head, body;
  ResponseParser parser(head_only, {.on_head =
                                        [&](int status, Headers headers) {
                                          BATON_CHECK_MSG(head.empty(), "a second head");
                                          head = std::to_string(status) + "\n";
                                          append(head, headers);
                                          return true;
                                        },
                                    .on_body =
                                        [&](std::string_view data) {
                                          BATON_CHECK_MSG(!head.empty(), "a body before its head");
                                          body += data;
                                          return true;
                                        }});
  const std::size_t taken = offer(parser, bytes, next_size, [&] { return parser.done() || parser.failed(); });
  const bool whole = parser.done() || (!parser.failed() && parser.put_eof());
  if (!whole) return parser.failed() ? "failed" : "more";
  return head + body + std::to_string(taken) + (parser.keep_alive() ? " keep" : " close");
}

}  // namespace

void run(std::string_view bytes) {
  const std::string input = std::string(bytes) + "\r\n\r\n";
  const auto all = [&] { return input.size(); };
  for (const std::size_t most : {1, 16}) {
    Rng rng(hash(input));
    const auto some = [&] { return 1 + rng.below(most); };
    const std::string whole = requests(input, all), pieces = requests(input, some);
    BATON_CHECK_MSG(whole == pieces, whole + "\n--- in pieces:\n" + pieces);
    for (const bool head_only : {false, true}) {
      const std::string whole_answer = answer(input, head_only, all), in_pieces = answer(input, head_only, some);
      BATON_CHECK_MSG(whole_answer == in_pieces, whole_answer + "\n--- in pieces:\n" + in_pieces);
    }
  }
}

std::vector<std::string> seeds() {
  return {
      "GET /a%20b?c=d HTTP/1.1\r\nHost: h\r\nAccept: */*\r\n\r\n",
      "POST /v1/chat HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
      "POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;a=b\r\n world\r\n0\r\nT: v\r\n\r\n",
      "GET http://h/x HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /y HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
      "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
      "POST / HTTP/1.1\r\nTransfer-Encoding: gzip, identity\r\n\r\n",
      "POST / HTTP/1.1\r\nContent-Length: 18446744073709551616\r\n\r\n",
      "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
      "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n0\r\n\r\n",
      "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 3\r\nConnection: close\r\n\r\nuntil the end",
      "HTTP/1.1 204 No Content\r\n\r\n",
  };
}

}  // namespace baton::fuzz
