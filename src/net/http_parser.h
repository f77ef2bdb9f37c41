#pragma once
// Incremental HTTP/1.1 parsers over Beast's, fed with whatever has arrived. For net/*.cc only.

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "net/http.h"

namespace baton::net {

// One request.
class RequestParser {
 public:
  RequestParser(std::size_t header_bytes_max, std::size_t body_bytes_max);
  ~RequestParser();

  // Returns how many bytes it took; what it leaves must be offered again with more behind it (or belongs to the next request).
  std::size_t put(std::string_view bytes);
  bool head_done() const;
  bool done() const;
  // 0, or the HTTP status that answers a request that cannot be served, and why. Nothing may be put after it.
  int error_status() const;
  const std::string& error_message() const;
  // After head_done().
  bool expects_continue() const;
  bool keep_alive() const;
  int version() const;  // 10 or 11
  // After done(), once. `remote` is left to the caller.
  HttpRequest take();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// One answer, after any 1xx, which are skipped.
class ResponseParser {
 public:
  struct Sink {
    std::function<bool(int status, Headers headers)> on_head;  // false: stop parsing
    std::function<bool(std::string_view data)> on_body;
  };
  // `head_only`: the answer to HEAD, which has no body whatever its headers say.
  ResponseParser(bool head_only, Sink sink);
  ~ResponseParser();

  std::size_t put(std::string_view bytes);
  // The peer closed: true if that is how this answer ends.
  bool put_eof();
  bool done() const;
  bool failed() const;  // also when the sink stopped it
  std::string error_message() const;
  bool keep_alive() const;

 private:
  class Impl;
  void renew();
  bool head_only_;
  Sink sink_;
  std::unique_ptr<Impl> impl_;
};

}  // namespace baton::net
