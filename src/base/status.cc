#include "base/status.h"

#include <cstdio>
#include <cstdlib>

namespace baton {
namespace {

struct CodeRow {
  Code code;
  std::string_view name;
  int http;
  std::string_view type;
  bool retryable;
};

constexpr CodeRow kCodes[] = {
    {Code::kOk, "ok", 200, "", false},
    {Code::kInvalidArgument, "invalid_argument", 400, "BadRequestError", false},
    {Code::kUnauthenticated, "unauthenticated", 401, "AuthenticationError", false},
    {Code::kNotFound, "not_found", 404, "NotFoundError", false},
    {Code::kPayloadTooLarge, "payload_too_large", 413, "BadRequestError", false},
    {Code::kResourceExhausted, "resource_exhausted", 429, "RateLimitError", true},
    {Code::kUnavailable, "unavailable", 503, "ServiceUnavailableError", true},
    {Code::kDeadlineExceeded, "deadline_exceeded", 504, "TimeoutError", false},
    {Code::kCancelled, "cancelled", 499, "CancelledError", false},
    {Code::kDataLoss, "data_loss", 500, "KVTransferError", true},
    {Code::kUnimplemented, "unimplemented", 501, "NotImplementedError", false},
    {Code::kInternal, "internal", 500, "InternalServerError", false},
};

const CodeRow& row(Code code) { return kCodes[static_cast<int>(code)]; }

}  // namespace

int http_status(Code code) { return row(code).http; }
std::string_view error_type(Code code) { return row(code).type; }
bool retryable(Code code) { return row(code).retryable; }
std::string_view to_string(Code code) { return row(code).name; }

Code code_from_string(std::string_view name) {
  for (const CodeRow& r : kCodes)
    if (r.name == name) return r.code;
  return Code::kInternal;
}

std::string Status::to_string() const {
  if (ok()) return "ok";
  return std::string(baton::to_string(code_)) + ": " + message_;
}

Status Status::with_context(std::string_view context) const {
  if (ok()) return *this;
  Status status = *this;
  status.message_ = std::string(context) + ": " + message_;
  return status;
}

Status Status::with_retry_after(int seconds) const {
  BATON_CHECK(!ok() && seconds > 0);
  Status status = *this;
  status.retry_after_s_ = seconds;
  status.message_ += "; retry after " + std::to_string(seconds) + " s";
  return status;
}

void check_failed(const char* file, int line, const char* expression, const std::string& detail) {
  std::fprintf(stderr, "%s:%d: check failed: %s%s%s\n", file, line, expression, detail.empty() ? "" : ": ", detail.c_str());
  std::abort();
}

}  // namespace baton
