// `baton gateway`: the front end: HTTP, text, and the choice of workers.

#include <signal.h>
#include <spdlog/fmt/fmt.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "api/api.h"
#include "app/api_keys.h"
#include "app/args.h"
#include "app/commands.h"
#include "app/options.h"
#include "app/paths.h"
#include "app/stats_line.h"
#include "app/supervisor.h"
#include "base/log.h"
#include "base/rng.h"
#include "gateway/gateway.h"
#include "model/contents.h"
#include "model/model_files.h"
#include "net/event_loop.h"
#include "net/http.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace baton::app {
namespace {

struct GatewayFlags {
  FrontFlags front;
  LogFlags log;
  std::string model, max_model_len;
  std::vector<std::string> workers;
  int listen_fd = -1, lifetime_fd = -1;
};

// NAME=ROLE@HOST:PORT
Result<gateway::WorkerConfig> parse_worker(const std::string& text) {
  const std::size_t eq = text.find('='), at = text.find('@'), colon = text.rfind(':');
  const Status bad(Code::kInvalidArgument, fmt::format("--worker {}: expected NAME=ROLE@HOST:PORT, e.g. p0=prefill@127.0.0.1:9000", text));
  if (eq == std::string::npos || at == std::string::npos || colon == std::string::npos || !(eq < at && at < colon)) return bad;
  gateway::WorkerConfig worker;
  worker.name = text.substr(0, eq);
  const auto role = wire::role_from_string(text.substr(eq + 1, at - eq - 1));
  worker.host = text.substr(at + 1, colon - at - 1);
  worker.port = std::atoi(text.c_str() + colon + 1);
  if (!role || worker.name.empty() || worker.host.empty() || worker.port <= 0 || worker.port > 65535) return bad;
  worker.role = *role;
  return worker;
}

// Sampling defaults: the model author's unless --generation-config says otherwise.
Result<api::SamplingDefaults> sampling_defaults(const FrontFlags& front, const model::ModelFiles& files) {
  api::SamplingDefaults out;
  const model::GenerationDefaults& given = files.generation_defaults();
  out.eos_ids = given.eos_ids;
  const auto apply = [&](const model::GenerationDefaults& g) {
    out.temperature = g.temperature.value_or(out.temperature);
    out.top_p = g.top_p.value_or(out.top_p);
    out.min_p = g.min_p.value_or(out.min_p);
    out.top_k = g.top_k.value_or(out.top_k);
    out.repetition_penalty = g.repetition_penalty.value_or(out.repetition_penalty);
    if (g.max_new_tokens) out.max_tokens = g.max_new_tokens;
  };
  if (front.generation_config == "auto") {
    apply(given);
  } else if (front.generation_config != "vllm") {
    const std::string path = front.generation_config + "/generation_config.json";
    BATON_ASSIGN_OR_RETURN(const std::string json, read_text_file(path));
    BATON_ASSIGN_OR_RETURN(const model::GenerationDefaults folder, model::generation_from_json(path, json, path, "{}"));
    apply(folder);
    for (const TokenId id : folder.eos_ids)
      if (std::find(out.eos_ids.begin(), out.eos_ids.end(), id) == out.eos_ids.end()) out.eos_ids.push_back(id);
  }
  return out;
}

// The text side of the model, kept for the life of the process.
struct TextSide {
  std::unique_ptr<text::Tokenizer> tokenizer;
  std::unique_ptr<text::ChatTemplate> chat_template;
  api::FrontEnd front;
};

Result<TextSide> load_text(const GatewayFlags& flags, const model::ModelFiles& files) {
  TextSide side;
  BATON_ASSIGN_OR_RETURN(const model::TextFiles text, files.text());
  BATON_ASSIGN_OR_RETURN(side.tokenizer, text::Tokenizer::from_json(text.tokenizer_json));
  std::string source = text.chat_template;
  if (!flags.front.chat_template.empty()) {
    BATON_ASSIGN_OR_RETURN(source, read_text_file(flags.front.chat_template));
  } else if (source.empty()) {
    log::warn("the model has no chat template; ChatML is used (choose another with --chat-template FILE)");
    source = text::default_chat_template();
  }
  text::ChatTemplateOptions options;
  options.source = source;
  options.bos_token = text.bos_token;
  options.eos_token = text.eos_token;
  BATON_ASSIGN_OR_RETURN(side.chat_template, text::ChatTemplate::create(options));
  api::FrontEnd& front = side.front;
  front.tokenizer = side.tokenizer.get();
  front.chat_template = side.chat_template.get();
  BATON_ASSIGN_OR_RETURN(front.defaults, sampling_defaults(flags.front, files));
  BATON_ASSIGN_OR_RETURN(front.max_model_len, effective_max_model_len(flags.max_model_len, files.config().max_positions));
  for (TokenId id = 0; id < side.tokenizer->vocab_size(); ++id)
    front.longest_token_bytes = std::max(front.longest_token_bytes, side.tokenizer->token_bytes(id).size());
  front.max_logprobs = flags.front.max_logprobs;
  front.draw = entropy_u64;
  if (flags.front.seed) front.draw = [rng = Rng(*flags.front.seed)]() mutable { return rng.next_u64(); };
  front.request_timeout = Duration(static_cast<std::int64_t>(flags.front.request_timeout_s * 1e6));
  return side;
}

class GatewayProcess {
 public:
  explicit GatewayProcess(GatewayFlags flags) : flags_(std::move(flags)) {}

  Status run() {
    watch_lifetime(loop_, flags_.lifetime_fd);
    BATON_ASSIGN_OR_RETURN(const std::string path, resolve_model(flags_.model));
    BATON_ASSIGN_OR_RETURN(const auto files, model::ModelFiles::open(path));
    BATON_ASSIGN_OR_RETURN(text_, load_text(flags_, *files));
    gateway::GatewayOptions options;
    for (const std::string& worker : flags_.workers) {
      BATON_ASSIGN_OR_RETURN(gateway::WorkerConfig config, parse_worker(worker));
      options.workers.push_back(std::move(config));
    }
    options.core.identity = Incarnation(entropy_u64());
    options.core.registry.progress_timeout = Duration(static_cast<std::int64_t>(flags_.front.progress_timeout_s * 1e6));
    options.poll_timeout = options.core.registry.progress_timeout / 2;  // two missed polls within it
    options.core.fallback = flags_.front.fallback == "local" ? gateway::Fallback::kLocal : gateway::Fallback::kFail;
    BATON_ASSIGN_OR_RETURN(ApiKeys keys, load_api_keys(flags_.front.api_keys(), flags_.front.api_key_file));
    if (readable_by_others(flags_.front.api_key_file))
      log::warn("{} can be read by other users; chmod 600 makes it yours alone", flags_.front.api_key_file);
    options.core.tenants = std::move(keys.tenants);
    options.core.queue_wait_max = Duration(static_cast<std::int64_t>(flags_.front.max_queue_wait_s * 1e6));
    options.core.requests_max = static_cast<std::size_t>(flags_.front.max_requests);
    client_ = net::HttpClient::create(loop_);
    gateway_ = std::make_unique<gateway::Gateway>(loop_, *client_, std::move(options));

    api::ApiOptions api;
    api.served_names = flags_.front.served_model_name.empty() ? std::vector<std::string>{flags_.model} : flags_.front.served_model_name;
    api.root = path;
    api.version = kVersion;
    api.api_keys = std::move(keys.keys);
    api.front = text_.front;
    api_ = std::make_unique<api::Api>(loop_, *gateway_, std::move(api), hooks());

    net::HttpServerOptions http;
    http.host = flags_.front.host;
    http.port = flags_.front.port;
    http.listen_fd = flags_.listen_fd;
    BATON_ASSIGN_OR_RETURN(
        server_,
        net::HttpServer::listen(loop_, std::move(http), [this](net::HttpRequest request, std::shared_ptr<net::HttpResponder> responder) {
          api_->handle(std::move(request), std::move(responder));
        }));
    log::info("gateway listens on port {}, {} workers", server_->port(), flags_.workers.size());
    loop_.on_signals({SIGTERM, SIGINT}, [this](int) { drain(); });
    if (flags_.front.stats_interval_s > 0) print_stats();
    loop_.run();
    api_.reset();
    return {};
  }

 private:
  api::ApiHooks hooks() {
    return {[this]() -> std::optional<std::string> {
              if (draining_) return "draining";
              return gateway_->not_ready();
            },
            [this] {
              std::vector<wire::WorkerStatus> out;
              for (const gateway::Worker& worker : gateway_->workers()) {
                if (worker.liveness == gateway::Liveness::kUnknown) continue;
                out.push_back(worker.status);
                out.back().ready = worker.usable();
              }
              return out;
            },
            [this](const std::string& id) { return gateway_->debug_request(id); },
            [this] {
              std::vector<api::Metrics::Named> out;
              for (auto& c : gateway_->counters()) out.push_back({std::move(c.name), std::move(c.labels), static_cast<double>(c.value)});
              return out;
            },
            [this] {
              const gateway::Stats s = gateway_->stats();
              return std::vector<api::Metrics::NamedHistogram>{
                  {"client_stall_seconds",
                   "From the last word of a worker that was lost amid an answer to the next token.",
                   {s.kStallBounds.begin(), s.kStallBounds.end()},
                   {s.stalls.begin(), s.stalls.end()},
                   to_seconds(s.stalled)}};
            },
            [this](std::function<void(std::optional<std::string>)> done) { gateway_->debug_kv(std::move(done)); }};
  }

  void print_stats() {
    const Duration interval = std::chrono::seconds(flags_.front.stats_interval_s);
    loop_.after(interval, [this, interval] {
      for (const std::string& line : stats_.lines(gateway_->workers(), to_seconds(interval))) log::info("{}", line);
      print_stats();
    });
  }

  // Readiness turns 503, running answers get their time, then the process ends.
  void drain() {
    if (draining_) return;
    draining_ = true;
    log::info("draining: {} requests running", api_->active());
    drain_deadline_ = loop_.clock().now() + Duration(static_cast<std::int64_t>(flags_.front.shutdown_timeout_s * 1e6));
    wait_drained();
  }
  void wait_drained() {
    if (api_->active() == 0 || loop_.clock().now() >= drain_deadline_) {
      server_->stop_accepting();
      return loop_.stop();
    }
    loop_.after(std::chrono::milliseconds(20), [this] { wait_drained(); });
  }

  GatewayFlags flags_;
  net::EventLoop loop_;
  TextSide text_;
  std::unique_ptr<net::HttpClient> client_;
  std::unique_ptr<gateway::Gateway> gateway_;
  std::unique_ptr<api::Api> api_;
  std::unique_ptr<net::HttpServer> server_;
  StatsLine stats_;
  bool draining_ = false;
  TimePoint drain_deadline_{};
};

}  // namespace

int run_gateway(Args args) {
  GatewayFlags flags;
  CLI::App app("The front end alone: OpenAI's API over workers that were started with `baton worker`.", "baton gateway");
  app.set_help_flag("-h,--help", "this text");
  app.add_option("model,--model", flags.model, "the model, for its tokenizer and chat template")->required();
  app.add_option("--worker", flags.workers, "NAME=ROLE@HOST:PORT; once for each worker")->required()->expected(1)->take_all();
  app.add_option("--max-model-len", flags.max_model_len, "longest prompt + output (default: the model's)");
  flags.log.add_to(app);
  app.add_option("--listen-fd", flags.listen_fd, "an inherited listening socket, from the supervisor")->group("");
  app.add_option("--lifetime-fd", flags.lifetime_fd, "a pipe whose end means: exit")->group("");
  std::string config;
  app.add_option("--config", config, "YAML file of flags; the command line wins");
  flags.front.add_to(app);
  if (const auto code = parse_args(app, std::move(args))) return *code;
  const LogFlags log = flags.log;
  log.init("gateway");
  if (flags.lifetime_fd >= 0) signal(SIGINT, SIG_IGN);  // the supervisor decides
  return log.end(GatewayProcess(std::move(flags)).run());
}

}  // namespace baton::app
