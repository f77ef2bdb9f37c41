#include "app/local_http.h"

#include <spdlog/fmt/fmt.h>

namespace baton::app {

bool EventSplitter::push(std::string_view bytes, const std::function<bool(std::string_view)>& on_event) {
  buffer_.append(bytes);
  std::size_t begin = 0;
  for (std::size_t end; (end = buffer_.find("\n\n", begin)) != std::string::npos; begin = end + 2) {
    std::string_view event(buffer_.data() + begin, end - begin);
    if (!event.starts_with("data:")) continue;  // a comment
    event.remove_prefix(5);
    if (event.starts_with(" ")) event.remove_prefix(1);
    if (!on_event(event)) return false;
  }
  buffer_.erase(0, begin);
  return true;
}

Result<LocalHttp> LocalHttp::open(const std::string& host, int port) {
  LocalHttp http;
  http.host_ = host == "0.0.0.0" || host == "::" ? "127.0.0.1" : host;
  http.port_ = port;
  http.loop_ = std::make_unique<net::EventLoop>();
  http.client_ = net::HttpClient::create(*http.loop_);
  return http;
}

Result<LocalHttp> LocalHttp::open(const std::string& url) {
  std::string rest = url;
  if (rest.starts_with("https://"))
    return Status(Code::kUnimplemented, fmt::format("{}: https is not supported; put a proxy in front or use http://", url));
  if (rest.starts_with("http://")) rest.erase(0, 7);
  rest = rest.substr(0, rest.find('/'));
  const auto colon = rest.rfind(':');
  int port = 80;
  if (colon != std::string::npos) {
    port = std::atoi(rest.c_str() + colon + 1);
    rest.resize(colon);
  }
  if (rest.empty() || port <= 0 || port > 65535)
    return Status(Code::kInvalidArgument, fmt::format("`{}` is not a URL like http://127.0.0.1:8000", url));
  return open(rest, port);
}

Result<HttpAnswer> LocalHttp::get(const std::string& target, Duration timeout) {
  net::HttpClientRequest request;
  request.method = "GET";
  request.target = target;
  request.idle_timeout = timeout;
  return run(std::move(request), nullptr);
}

Result<HttpAnswer> LocalHttp::post(const std::string& target, const std::string& json, Duration timeout) {
  return post_events(target, json, nullptr, timeout);
}

Result<HttpAnswer> LocalHttp::post_events(const std::string& target, const std::string& json,
                                          std::function<bool(std::string_view)> on_event, Duration idle_timeout) {
  net::HttpClientRequest request;
  request.target = target;
  request.body = json;
  request.headers.add("Content-Type", "application/json");
  request.idle_timeout = idle_timeout;
  return run(std::move(request), std::move(on_event));
}

Result<HttpAnswer> LocalHttp::run(net::HttpClientRequest request, std::function<bool(std::string_view)> on_event) {
  request.host = host_;
  request.port = port_;
  for (const auto& [name, value] : headers_.fields()) request.headers.add(name, value);
  if (!api_key_.empty() && request.headers.get("Authorization").empty()) request.headers.add("Authorization", "Bearer " + api_key_);
  HttpAnswer answer;
  Status status;
  EventSplitter splitter;
  std::unique_ptr<net::HttpCall> call;
  call = client_->call(std::move(request), {[&](int code, const net::Headers& headers) {
                                              answer.status = code;
                                              answer.headers = headers;
                                            },
                                            [&](std::string_view data) {
                                              if (!on_event || answer.status != 200) {
                                                answer.body.append(data);
                                              } else if (!splitter.push(data, on_event)) {
                                                call->cancel();
                                                loop_->stop();
                                              }
                                            },
                                            [&](Status done) {
                                              status = std::move(done);
                                              loop_->stop();
                                            }});
  loop_->run();
  if (!status.ok()) return status.with_context(fmt::format("http://{}:{}", host_, port_));
  return answer;
}

}  // namespace baton::app
