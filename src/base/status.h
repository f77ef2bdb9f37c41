#pragma once
// Expected trouble (network, peers, input, capacity) is a value: Status, or Result<T> where there is something to return.
// Programmer errors are BATON_CHECK. No exception crosses a module border.

#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace baton {

// The one table of error codes. `http_status`, `error_type` and `retryable` below give what each means to a client and to the gateway.
enum class Code : unsigned char {
  kOk,
  kInvalidArgument,    // the request itself is wrong; never retried
  kUnauthenticated,    // missing or wrong API key
  kNotFound,           // unknown model, path or request
  kPayloadTooLarge,    // body over the limit
  kResourceExhausted,  // a queue or a pool is full; the client may retry later
  kUnavailable,        // no live worker, draining, loading; the gateway may retry elsewhere
  kDeadlineExceeded,   // a wait ran out
  kCancelled,          // the client went away, or the request was cancelled
  kDataLoss,           // a digest did not match, a peer sent garbage; the gateway may retry elsewhere
  kUnimplemented,
  kInternal,
};

// HTTP status of a code (499 for kCancelled, as nginx has it).
int http_status(Code code);
// OpenAI-style error `type`, e.g. "BadRequestError".
std::string_view error_type(Code code);
// Whether the gateway may try the same request on another worker.
bool retryable(Code code);
std::string_view to_string(Code code);
// The inverse of to_string; kInternal for an unknown name.
Code code_from_string(std::string_view name);

class [[nodiscard]] Status {
 public:
  Status() = default;  // ok
  // `message` says what was wrong, where, and what to do.
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == Code::kOk; }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }
  // "unavailable: worker d0 is draining"
  std::string to_string() const;
  // The same status with `context: ` put before the message.
  Status with_context(std::string_view context) const;
  // When trying again may help, in seconds: the Retry-After of an HTTP answer. 0: nothing is known.
  int retry_after_s() const { return retry_after_s_; }
  // The same status with that hint, which its message then ends with: "...; retry after 3 s". `seconds` is 1 or more.
  Status with_retry_after(int seconds) const;

 private:
  Code code_ = Code::kOk;
  int retry_after_s_ = 0;
  std::string message_;
};

[[noreturn]] void check_failed(const char* file, int line, const char* expression, const std::string& detail);

#define BATON_CHECK(expression) (static_cast<bool>(expression) ? void(0) : ::baton::check_failed(__FILE__, __LINE__, #expression, {}))
#define BATON_CHECK_MSG(expression, detail) \
  (static_cast<bool>(expression) ? void(0) : ::baton::check_failed(__FILE__, __LINE__, #expression, detail))

// A value, or the Status that says why there is none.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}                                       // NOLINT: implicit on purpose
  Result(Status status) : status_(std::move(status)) { BATON_CHECK(!status_.ok()); }  // NOLINT
  Result(Code code, std::string message) : status_(code, std::move(message)) {}

  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }
  T& value() & {
    BATON_CHECK_MSG(ok(), status_.to_string());
    return *value_;
  }
  const T& value() const& {
    BATON_CHECK_MSG(ok(), status_.to_string());
    return *value_;
  }
  T&& value() && {
    BATON_CHECK_MSG(ok(), status_.to_string());
    return std::move(*value_);
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

 private:
  Status status_;
  std::optional<T> value_;
};

#define BATON_CONCAT_INNER(a, b) a##b
#define BATON_CONCAT(a, b) BATON_CONCAT_INNER(a, b)
// Returns the Status of `expression` from the enclosing function if it is not ok.
#define BATON_RETURN_IF_ERROR(expression)                       \
  do {                                                          \
    if (::baton::Status s_ = (expression); !s_.ok()) return s_; \
  } while (false)
// BATON_ASSIGN_OR_RETURN(auto x, make_x());
#define BATON_ASSIGN_OR_RETURN(declaration, expression) \
  BATON_ASSIGN_OR_RETURN_INNER(BATON_CONCAT(result_, __LINE__), declaration, expression)
#define BATON_ASSIGN_OR_RETURN_INNER(tmp, declaration, expression) \
  auto tmp = (expression);                                         \
  if (!tmp.ok()) return tmp.status();                              \
  declaration = std::move(tmp).value()

}  // namespace baton
