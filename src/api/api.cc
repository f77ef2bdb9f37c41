#include "api/api.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <array>
#include <cctype>

#include "api/errors.h"
#include "api/json_text.h"

namespace baton::api {
namespace {

ApiError bad_request(std::string message, std::string param = {}) {
  return {Status(Code::kInvalidArgument, std::move(message)), std::move(param)};
}

constexpr std::size_t kDepthMax = 64;     // of nested lists and objects: nlohmann copies and prints them recursively
constexpr std::size_t kFieldsMax = 2048;  // of one object: an ordered one is searched from its start for each field that it gets

// Whether the text is safe to parse; says nothing about whether it is JSON.
Status check_shape(std::string_view text) {
  std::array<std::size_t, kDepthMax + 1> fields{};
  std::size_t depth = 0;
  bool quoted = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quoted) {
      if (c == '\\') ++i;
      if (c == '"') quoted = false;
    } else if (c == '"') {
      quoted = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kDepthMax) return Status(Code::kInvalidArgument, fmt::format("the body is nested more than {} levels deep", kDepthMax));
      fields[depth] = 0;
    } else if ((c == ']' || c == '}') && depth > 0) {
      --depth;
    } else if (c == ':' && ++fields[depth] > kFieldsMax) {
      return Status(Code::kInvalidArgument, fmt::format("an object of the body has more than {} fields", kFieldsMax));
    }
  }
  return {};
}

// A body that is a JSON object, or what is wrong with it.
std::optional<ApiError> parse_body(const std::string& text, Json& out) {
  if (const Status shape = check_shape(text); !shape.ok()) return ApiError{shape, ""};
  try {
    out = Json::parse(text);
  } catch (const Json::exception& e) {
    return bad_request(fmt::format("the body is not valid JSON: {}", valid_utf8(e.what())));
  }
  if (!out.is_object()) return bad_request("the body must be a JSON object");
  return std::nullopt;
}

// The client's W3C trace context. One that is not valid, or sent twice, is ignored, as the standard wants.
std::optional<wire::TraceContext> trace_of(const net::Headers& headers) {
  std::optional<wire::TraceContext> found;
  int seen = 0;
  for (const auto& [name, value] : headers.fields()) {
    if (!std::ranges::equal(name, std::string_view("traceparent"), {}, [](unsigned char c) { return std::tolower(c); })) continue;
    found = wire::parse_traceparent(value);
    ++seen;
  }
  return seen == 1 ? found : std::nullopt;
}

bool equal_secret(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  unsigned char difference = 0;
  for (std::size_t i = 0; i < a.size(); ++i) difference |= static_cast<unsigned char>(a[i] ^ b[i]);
  return difference == 0;
}

}  // namespace

Api::Api(net::Executor& loop, wire::Generator& generator, ApiOptions options, ApiHooks hooks)
    : loop_(loop),
      options_(std::move(options)),
      hooks_(std::move(hooks)),
      metrics_(options_.served_names.front(), options_.front.max_model_len),
      context_{loop, generator, metrics_, *options_.front.tokenizer, options_.served_names.front(), "baton-" + options_.version} {}

Api::~Api() = default;

std::optional<std::int32_t> Api::tenant_of(const net::HttpRequest& request) const {
  if (options_.api_keys.empty()) return 0;
  if (!request.path.starts_with("/v1/") && request.path != "/tokenize" && request.path != "/detokenize") return 0;
  std::string_view given = request.headers.get("Authorization");
  if (given.starts_with("Bearer ")) given.remove_prefix(7);
  std::optional<std::int32_t> tenant;  // all are compared: how long it takes says nothing about which one fits
  for (const ApiKey& key : options_.api_keys)
    if (equal_secret(key.secret, given)) tenant = key.tenant;
  return tenant;
}

// The last line: whatever is thrown below (memory that is not there, a JSON library's surprise) costs this request, never the process.
void Api::handle(net::HttpRequest request, Responder responder) {
  try {
    route(request, responder);
  } catch (const std::exception& e) {
    respond_error(*responder, {Status(Code::kInternal, fmt::format("{} {}: {}", request.method, request.path, e.what())), ""});
  }
}

void Api::route(const net::HttpRequest& request, const Responder& responder) {
  const auto tenant = tenant_of(request);
  if (!tenant) return respond_error(*responder, {Status(Code::kUnauthenticated, "missing or wrong API key"), ""});
  const std::string& path = request.path;
  const bool post = request.method == "POST", get = request.method == "GET" || request.method == "HEAD";
  if (post && path == "/v1/chat/completions") return generate(Endpoint::kChat, request, *tenant, responder);
  if (post && path == "/v1/completions") return generate(Endpoint::kCompletions, request, *tenant, responder);
  if (post && path == "/tokenize") return tokenize(request, responder);
  if (post && path == "/detokenize") return detokenize(request, responder);
  if (get && (path == "/v1/models" || path.starts_with("/v1/models/"))) return models(path.size() > 11 ? path.substr(11) : "", responder);
  if (get && path == "/health") return responder->respond(200, {}, "");
  if ((get || post) && path == "/ping") return responder->respond(200, {}, "");
  if (get && (path == "/health/ready" || path == "/readyz")) return ready(responder);
  if (get && path == "/version") return respond_json(*responder, 200, Json{{"version", options_.version}}.dump());
  if (get && path == "/metrics") {
    net::Headers headers;
    headers.add("Content-Type", "text/plain; version=0.0.4; charset=utf-8");
    return responder->respond(200, std::move(headers), metrics_.serialize(hooks_.workers(), hooks_.counters(), hooks_.histograms()));
  }
  if (get && path == "/debug/workers") {
    std::string body = "[";
    for (const wire::WorkerStatus& worker : hooks_.workers()) body += (body.size() > 1 ? "," : "") + wire::to_json(worker);
    return respond_json(*responder, 200, body + "]");
  }
  if (get && path == "/debug/kv") {
    return hooks_.debug_kv([responder](std::optional<std::string> json) {
      if (json) return respond_json(*responder, 200, std::move(*json));
      respond_error(*responder, {Status(Code::kResourceExhausted, "too many look at the KV at once"), ""});
    });
  }
  if (get && path.starts_with("/debug/requests/")) {
    std::string id = path.substr(16);
    for (const char* prefix : {"chatcmpl-", "cmpl-"})
      if (id.starts_with(prefix)) id.erase(0, std::string_view(prefix).size());
    if (auto record = hooks_.debug_request(id)) return respond_json(*responder, 200, std::move(*record));
    return respond_error(*responder,
                         {Status(Code::kNotFound, fmt::format("no record of request `{}`; the last 1,000 are kept", id)), "id"});
  }
  respond_error(*responder, {Status(Code::kNotFound, fmt::format("there is no {} {}", request.method, path)), ""});
}

void Api::ready(const Responder& responder) {
  if (const auto reason = hooks_.not_ready()) {
    net::Headers headers;
    headers.add("Content-Type", "application/json");
    headers.add("Retry-After", "1");
    return responder->respond(503, std::move(headers), Json{{"ready", false}, {"reason", *reason}}.dump());
  }
  respond_json(*responder, 200, "{\"ready\":true}");
}

// The request's id everywhere: the client's X-Request-Id where it has a usable one, made unique among those that run.
std::string Api::request_id(const net::HttpRequest& request) {
  std::string id(request.headers.get("x-request-id"));
  const auto usable = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.' || c == ':'; };
  if (id.empty() || id.size() > 128 || !std::all_of(id.begin(), id.end(), usable)) id = fmt::format("{:016x}", options_.front.draw());
  std::string unique = id;
  for (int i = 2; in_flight_.count(unique); ++i) unique = id + "-" + std::to_string(i);
  return unique;
}

std::optional<ApiError> Api::check_model(const Json& body) const {
  const auto it = body.find("model");
  if (it == body.end() || it->is_null()) return std::nullopt;
  if (!it->is_string()) return bad_request(fmt::format("`model` must be a string, got {}", it->type_name()), "model");
  const auto& name = it->get_ref<const std::string&>();
  const auto& names = options_.served_names;
  const auto basename = [](const std::string& path) { return path.substr(path.find_last_of('/') + 1); };
  if (name.empty() || std::find(names.begin(), names.end(), name) != names.end() || name == options_.root ||
      name == basename(options_.root))
    return std::nullopt;
  return ApiError{Status(Code::kNotFound,
                         fmt::format("The model `{}` does not exist. This server serves: {}.", valid_utf8(name), fmt::join(names, ", "))),
                  "model"};
}

void Api::generate(Endpoint endpoint, const net::HttpRequest& http, std::int32_t tenant, const Responder& responder) {
  if (const auto reason = hooks_.not_ready())
    return respond_error(*responder, {Status(Code::kUnavailable, "the server is not ready: " + *reason), ""});
  Json body;
  if (const auto error = parse_body(http.body, body)) return respond_error(*responder, *error);
  if (const auto error = check_model(body)) return respond_error(*responder, *error);
  ParsedRequest parsed;
  if (const auto error = parse_request(options_.front, endpoint, body, parsed)) return respond_error(*responder, *error);
  parsed.trace = trace_of(http.headers);
  for (wire::GenerateRequest& prompt : parsed.prompts) prompt.tenant = tenant;
  std::string id = request_id(http);
  in_flight_.insert(id);
  Answer::start(context_, std::move(parsed), responder, id, [this, id] { in_flight_.erase(id); });
}

void Api::models(const std::string& one, const Responder& responder) {
  if (const auto reason = hooks_.not_ready())
    return respond_error(*responder, {Status(Code::kUnavailable, "the server is not ready: " + *reason), ""});
  Json data = Json::array();
  for (const std::string& name : options_.served_names) {
    Json model{{"id", name},
               {"object", "model"},
               {"created", loop_.clock().unix_seconds()},
               {"owned_by", "baton"},
               {"root", options_.root},
               {"parent", nullptr},
               {"max_model_len", options_.front.max_model_len},
               {"permission", Json::array()}};
    if (one == name) return respond_json(*responder, 200, model.dump());
    data.push_back(std::move(model));
  }
  if (!one.empty())
    return respond_error(*responder, {Status(Code::kNotFound, fmt::format("The model `{}` does not exist. This server serves: {}.", one,
                                                                          fmt::join(options_.served_names, ", "))),
                                      "model"});
  respond_json(*responder, 200, Json{{"object", "list"}, {"data", std::move(data)}}.dump());
}

void Api::tokenize(const net::HttpRequest& http, const Responder& responder) {
  Json body;
  if (const auto error = parse_body(http.body, body)) return respond_error(*responder, *error);
  if (const auto error = check_model(body)) return respond_error(*responder, *error);
  Fields fields(body);
  const bool chat = fields.find("messages") != nullptr;
  std::string text;
  if (chat) {
    auto rendered = render_chat(options_.front, body);
    if (!rendered.ok()) return respond_error(*responder, {rendered.status(), "messages"});
    text = std::move(rendered).value();
  } else {
    const auto prompt = fields.string("prompt");
    if (!prompt && fields.ok()) fields.fail("prompt", "`prompt` or `messages` is required");
    text = prompt.value_or("");
  }
  const bool add_special = fields.boolean("add_special_tokens", !chat);
  const bool strings = fields.boolean("return_token_strs", false);
  if (!fields.ok()) return respond_error(*responder, fields.error());
  const char* source = chat ? "messages" : "prompt";
  if (const Status fits = check_length(options_.front, text.size(), source); !fits.ok()) return respond_error(*responder, {fits, source});
  const auto ids = options_.front.tokenizer->encode(text, add_special);
  if (!ids.ok()) return respond_error(*responder, {ids.status(), source});
  Json answer{{"count", ids->size()}, {"max_model_len", options_.front.max_model_len}, {"tokens", *ids}};
  if (strings) {
    Json list = Json::array();
    for (const TokenId id : *ids) list.push_back(valid_utf8(options_.front.tokenizer->token_bytes(id)));
    answer["token_strs"] = std::move(list);
  }
  respond_json(*responder, 200, answer.dump());
}

void Api::detokenize(const net::HttpRequest& http, const Responder& responder) {
  Json body;
  if (const auto error = parse_body(http.body, body)) return respond_error(*responder, *error);
  if (const auto error = check_model(body)) return respond_error(*responder, *error);
  Fields fields(body);
  if (!fields.find("tokens")) fields.fail("tokens", "`tokens` is required");
  const std::vector<TokenId> ids = fields.ids("tokens", 1u << 20);
  for (const TokenId id : ids)
    if (id >= options_.front.tokenizer->vocab_size())
      fields.fail("tokens",
                  fmt::format("`tokens` contains {}, which is not below the vocabulary of {}", id, options_.front.tokenizer->vocab_size()));
  if (!fields.ok()) return respond_error(*responder, fields.error());
  respond_json(*responder, 200, Json{{"prompt", options_.front.tokenizer->decode(ids, false)}}.dump());
}

}  // namespace baton::api
