#include "net/http_parser.h"

#include <boost/asio/buffer.hpp>
#include <boost/beast/http/basic_parser.hpp>
#include <boost/beast/http/error.hpp>
#include <limits>

#include "net/http_text.h"

namespace baton::net {
namespace {

namespace http = boost::beast::http;
using boost::beast::error_code;
using BeastView = boost::beast::string_view;

constexpr std::size_t kResponseHeaderBytesMax = 64u << 10;

// Beast asserts that a last chunk whose size line it has seen is not offered again before it can be whole.
bool last_chunk_begins(std::string_view bytes) { return bytes.size() < 5 && bytes.starts_with('0'); }

// The user wants no more of this answer.
error_code stopped() { return make_error_code(boost::system::errc::operation_canceled); }

std::string_view view(BeastView text) { return {text.data(), text.size()}; }

}  // namespace

class RequestParser::Impl final : public http::basic_parser<true> {
 public:
  Impl(std::size_t header_bytes_max, std::size_t body_bytes_max) : header_bytes_max_(header_bytes_max), body_bytes_max_(body_bytes_max) {
    header_limit(static_cast<std::uint32_t>(std::min<std::size_t>(header_bytes_max, std::numeric_limits<std::uint32_t>::max())));
    body_limit(body_bytes_max);
    eager(true);
  }

  std::size_t put_bytes(std::string_view bytes) {
    if (status_ != 0 || is_done() || bytes.empty() || (in_chunk_line_ && last_chunk_begins(bytes))) return 0;
    error_code error;
    const std::size_t taken = put(boost::asio::const_buffer(bytes.data(), bytes.size()), error);
    in_chunk_line_ = error == http::error::need_more && is_header_done() && chunked();
    if (!is_header_done()) {
      head_bytes_ += taken;
      if (!error && head_bytes_ > header_bytes_max_) error = http::error::header_limit;
      if (error == http::error::need_more && head_bytes_ + bytes.size() - taken > header_bytes_max_) error = http::error::header_limit;
    }
    if (error && error != http::error::need_more) fail(error);
    return taken;
  }

  void fail(error_code error) {
    if (status_ != 0) return;
    if (error == http::error::body_limit) {
      status_ = 413;
      message_ = "the request body is larger than the limit of " + std::to_string(body_bytes_max_) + " bytes";
    } else if (error == http::error::header_limit) {
      status_ = 431;
      message_ = "the request header is larger than the limit of " + std::to_string(header_bytes_max_) + " bytes";
    } else if (error == http::error::bad_version) {
      status_ = 505;
      message_ = "only HTTP/1.0 and HTTP/1.1 are served";
    } else {
      status_ = 400;
      message_ = "invalid HTTP request: " + error.message();
    }
  }

  HttpRequest request_;
  int version_ = 11;
  int status_ = 0;
  bool expects_continue_ = false;
  std::string message_;

 private:
  void on_request_impl(http::verb, BeastView method, BeastView target, int version, error_code& error) override {
    request_.method = std::string(view(method));
    version_ = version;
    if (version != 10 && version != 11) {
      error = http::error::bad_version;
      return;
    }
    std::string_view rest = view(target);
    // Absolute form, as sent to proxies: the path begins after the authority.
    for (std::string_view scheme : {"http://", "https://"}) {
      if (rest.size() < scheme.size() || !equal_ignoring_case(rest.substr(0, scheme.size()), scheme)) continue;
      const std::size_t slash = rest.find('/', scheme.size());
      rest = slash == std::string_view::npos ? "/" : rest.substr(slash);
      break;
    }
    const std::size_t question = rest.find('?');
    if (question != std::string_view::npos) request_.query = std::string(rest.substr(question + 1));
    if (!percent_decode(rest.substr(0, question), request_.path)) error = http::error::bad_target;
  }
  void on_response_impl(int, BeastView, int, error_code&) override {}
  void on_field_impl(http::field, BeastView name, BeastView value, error_code&) override {
    if (is_header_done()) return;  // a trailer
    if (equal_ignoring_case(view(name), "expect")) expects_continue_ = equal_ignoring_case(view(value), "100-continue");
    request_.headers.add(std::string(view(name)), std::string(view(value)));
  }
  void on_header_impl(error_code& error) override {
    // A transfer coding whose end we cannot find, or that another server on the way reads otherwise, would make the body look like the
    // next request.
    int codings = 0;
    for (const auto& [name, value] : request_.headers.fields()) {
      if (!equal_ignoring_case(name, "transfer-encoding")) continue;
      if (++codings > 1 || !equal_ignoring_case(value, "chunked")) error = http::error::bad_transfer_encoding;
    }
  }
  void on_body_init_impl(boost::optional<std::uint64_t> const& length, error_code&) override {
    // Not all that is announced: the memory is only for who really sends it.
    if (length) request_.body.reserve(static_cast<std::size_t>(std::min<std::uint64_t>(*length, 1u << 20)));
  }
  std::size_t on_body_impl(BeastView body, error_code&) override {
    request_.body.append(body.data(), body.size());
    return body.size();
  }
  void on_chunk_header_impl(std::uint64_t size, BeastView, error_code& error) override {
    if (size > body_bytes_max_ - std::min(body_bytes_max_, request_.body.size())) error = http::error::body_limit;
  }
  std::size_t on_chunk_body_impl(std::uint64_t, BeastView body, error_code& error) override { return on_body_impl(body, error); }
  void on_finish_impl(error_code&) override {}

  const std::size_t header_bytes_max_;
  const std::size_t body_bytes_max_;
  std::size_t head_bytes_ = 0;
  bool in_chunk_line_ = false;  // a chunk's size line, or the trailers, wait for their end
};

RequestParser::RequestParser(std::size_t header_bytes_max, std::size_t body_bytes_max)
    : impl_(std::make_unique<Impl>(header_bytes_max, body_bytes_max)) {}
RequestParser::~RequestParser() = default;
std::size_t RequestParser::put(std::string_view bytes) { return impl_->put_bytes(bytes); }
bool RequestParser::head_done() const { return impl_->is_header_done(); }
bool RequestParser::done() const { return impl_->is_done(); }
int RequestParser::error_status() const { return impl_->status_; }
const std::string& RequestParser::error_message() const { return impl_->message_; }
bool RequestParser::expects_continue() const { return impl_->expects_continue_ && impl_->version_ == 11; }
bool RequestParser::keep_alive() const { return impl_->keep_alive(); }
int RequestParser::version() const { return impl_->version_; }
HttpRequest RequestParser::take() { return std::move(impl_->request_); }

class ResponseParser::Impl final : public http::basic_parser<false> {
 public:
  Impl(bool head_only, Sink& sink) : sink_(sink) {
    header_limit(kResponseHeaderBytesMax);
    body_limit(boost::none);  // streamed on, never held
    eager(true);
    skip(head_only);
  }

  std::size_t put_bytes(std::string_view bytes) {
    if (failed_ || is_done() || bytes.empty() || (in_chunk_line_ && last_chunk_begins(bytes))) return 0;
    error_code error;
    const std::size_t taken = put(boost::asio::const_buffer(bytes.data(), bytes.size()), error);
    in_chunk_line_ = error == http::error::need_more && is_header_done() && chunked();
    if (error && error != http::error::need_more) fail(error);
    return taken;
  }
  bool eof() {
    if (failed_ || !is_header_done()) return false;
    error_code error;
    put_eof(error);
    if (error) fail(error);
    return is_done();
  }
  void fail(error_code error) {
    failed_ = true;
    message_ = error.message();
  }

  bool informational() const { return status_ / 100 == 1; }
  bool failed_ = false;
  std::string message_;

 private:
  void on_request_impl(http::verb, BeastView, BeastView, int, error_code&) override {}
  void on_response_impl(int status, BeastView, int, error_code&) override { status_ = status; }
  void on_field_impl(http::field, BeastView name, BeastView value, error_code&) override {
    if (!is_header_done()) headers_.add(std::string(view(name)), std::string(view(value)));
  }
  void on_header_impl(error_code& error) override {
    if (!informational() && !sink_.on_head(status_, std::move(headers_))) error = stopped();
  }
  void on_body_init_impl(boost::optional<std::uint64_t> const&, error_code&) override {}
  std::size_t on_body_impl(BeastView body, error_code& error) override {
    if (!body.empty() && !sink_.on_body(view(body))) error = stopped();
    return body.size();
  }
  void on_chunk_header_impl(std::uint64_t, BeastView, error_code&) override {}
  std::size_t on_chunk_body_impl(std::uint64_t, BeastView body, error_code& error) override { return on_body_impl(body, error); }
  void on_finish_impl(error_code&) override {}

  Sink& sink_;
  int status_ = 0;
  bool in_chunk_line_ = false;
  Headers headers_;
};

ResponseParser::ResponseParser(bool head_only, Sink sink) : head_only_(head_only), sink_(std::move(sink)) { renew(); }
ResponseParser::~ResponseParser() = default;
void ResponseParser::renew() { impl_ = std::make_unique<Impl>(head_only_, sink_); }

std::size_t ResponseParser::put(std::string_view bytes) {
  std::size_t taken = 0;
  while (true) {
    taken += impl_->put_bytes(bytes.substr(taken));
    if (!(impl_->is_done() && impl_->informational())) return taken;
    renew();
  }
}

bool ResponseParser::put_eof() { return impl_->eof(); }
bool ResponseParser::done() const { return impl_->is_done() && !impl_->informational(); }
bool ResponseParser::failed() const { return impl_->failed_; }
std::string ResponseParser::error_message() const { return impl_->message_; }
bool ResponseParser::keep_alive() const { return impl_->keep_alive() && !impl_->need_eof(); }

}  // namespace baton::net
