// `baton chat`: a conversation in the terminal, streamed, with history.

#include <histedit.h>
#include <signal.h>
#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "app/args.h"
#include "app/client_flags.h"
#include "app/commands.h"
#include "app/paths.h"

namespace baton::app {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kHelp =
    "  /new            start over\n  /system TEXT    set the system message and start over\n  /set NAME VALUE a request field, e.g. /set "
    "temperature 0.2\n"
    "  /show           the settings\n  /help           this\n  /bye            leave (also Ctrl-D)\n";

// Lines from a terminal with editing and history, or from a pipe.
class LineReader {
 public:
  LineReader() {
    if (!isatty(0)) return;
    el_ = el_init("baton", stdin, stdout, stderr);
    history_ = history_init();
    HistEvent event;
    history(history_, &event, H_SETSIZE, 1000);
    file_ = home_dir() + "/chat_history";
    history(history_, &event, H_LOAD, file_.c_str());
    el_set(
        el_, EL_PROMPT, +[](EditLine*) -> char* {
          static char prompt[] = ">>> ";
          return prompt;
        });
    el_set(el_, EL_EDITOR, "emacs");
    el_set(el_, EL_HIST, history, history_);
    el_set(el_, EL_SIGNAL, 1);
  }
  ~LineReader() {
    if (!el_) return;
    HistEvent event;
    if (make_dirs(home_dir()).ok()) history(history_, &event, H_SAVE, file_.c_str());
    history_end(history_);
    el_end(el_);
  }
  std::optional<std::string> next() {
    std::string line;
    if (el_) {
      int count = 0;
      const char* text = el_gets(el_, &count);
      if (!text || count <= 0) return std::nullopt;
      line.assign(text, static_cast<std::size_t>(count));
      HistEvent event;
      if (line.size() > 1) history(history_, &event, H_ENTER, text);
    } else {
      for (int c; (c = std::getchar()) != EOF;) {
        line.push_back(static_cast<char>(c));
        if (c == '\n') break;
      }
      if (line.empty()) return std::nullopt;
    }
    while (!line.empty() && (line.back() == '\n' || line.back() == '\r')) line.pop_back();
    return line;
  }

 private:
  EditLine* el_ = nullptr;
  History* history_ = nullptr;
  std::string file_;
};

class Chat {
 public:
  Chat(LocalHttp http, Json settings, std::string system)
      : http_(std::move(http)), settings_(std::move(settings)), system_(std::move(system)) {
    start_over();
    http_.loop().on_signals({SIGINT}, [this](int) {
      interrupted_ = true;
      http_.loop().stop();
    });
  }
  Chat(const Chat&) = delete;  // the signal handler holds its address

  // One exchange; prints as it comes.
  Status say(const std::string& text) {
    messages_.push_back({{"role", "user"}, {"content", text}});
    Json body = settings_;
    body["messages"] = messages_;
    body["stream"] = true;
    body["stream_options"] = {{"include_usage", true}};
    const Clock& clock = http_.loop().clock();
    const TimePoint start = clock.now();
    TimePoint first{}, last{};
    std::string reply;
    int tokens = 0;
    Status error;
    interrupted_ = false;
    const auto answer = http_.post_events("/v1/chat/completions", body.dump(), [&](std::string_view data) {
      if (data == "[DONE]") return true;
      const Json chunk = Json::parse(data, nullptr, false);
      if (!chunk.is_object() || chunk.contains("error")) {
        error = Status(Code::kInternal, chunk.is_object() ? chunk["error"].value("message", std::string(data)) : std::string(data));
        return true;
      }
      if (chunk.contains("usage") && chunk["usage"].is_object()) tokens = chunk["usage"].value("completion_tokens", 0);
      const auto text = delta_text(chunk);
      if (!text) return true;
      last = clock.now();
      if (first == TimePoint{}) first = last;
      const std::string& piece = *text;
      std::fputs(piece.c_str(), stdout);
      std::fflush(stdout);
      reply += piece;
      return true;
    });
    std::fputs("\n", stdout);
    if (interrupted_) {
      std::fputs("(interrupted)\n", stdout);
    } else {
      if (Status failed = !answer.ok() ? answer.status() : error.ok() ? check_answer(*answer, "chat") : error; !failed.ok()) {
        messages_.erase(messages_.size() - 1);
        return failed;
      }
      const double seconds = to_seconds(last - first);
      fmt::print("[{} tokens, first after {:.0f} ms, {:.1f} tok/s]\n", tokens, to_ms(first - start),
                 tokens > 1 && seconds > 0 ? (tokens - 1) / seconds : 0.0);
    }
    messages_.push_back({{"role", "assistant"}, {"content", reply}});
    return {};
  }

  // A line that begins with '/'. False: leave.
  bool command(const std::string& line) {
    const std::size_t space = line.find(' ');
    const std::string word = line.substr(0, space), rest = space == std::string::npos ? "" : line.substr(space + 1);
    if (word == "/bye" || word == "/exit" || word == "/quit") return false;
    if (word == "/new" || word == "/clear") {
      start_over();
    } else if (word == "/system") {
      system_ = rest;
      start_over();
    } else if (word == "/set") {
      const std::size_t gap = rest.find(' ');
      Json value = gap == std::string::npos ? Json() : Json::parse(rest.substr(gap + 1), nullptr, false);
      if (gap == std::string::npos) {
        std::fputs("usage: /set NAME VALUE\n", stdout);
      } else {
        settings_[rest.substr(0, gap)] = value.is_discarded() ? Json(rest.substr(gap + 1)) : value;
      }
    } else if (word == "/show") {
      fmt::print("{}\nsystem: {}\n{} messages\n", settings_.dump(), system_.empty() ? "(the template's own)" : system_, messages_.size());
    } else {
      std::fputs(kHelp, stdout);
    }
    return true;
  }

 private:
  void start_over() {
    messages_ = Json::array();
    if (!system_.empty()) messages_.push_back({{"role", "system"}, {"content", system_}});
  }

  LocalHttp http_;
  Json settings_;
  std::string system_;
  Json messages_;
  bool interrupted_ = false;
};

}  // namespace

int run_chat(Args args) {
  ClientFlags client;
  std::string quick, system;
  Json settings = Json::object();
  std::optional<double> temperature;
  std::optional<int> max_tokens;
  CLI::App app("Talks to a running server. Type /help for what a line may be besides a message.", "baton chat");
  app.set_help_flag("-h,--help", "this text");
  client.add_to(app);
  app.add_option("-q,--quick", quick, "say this, print the answer and leave");
  app.add_option("--system,--system-prompt", system, "system message");
  app.add_option("--temperature", temperature, "sampling temperature (default: the model's)");
  app.add_option("--max-tokens", max_tokens, "longest answer in tokens");
  if (const auto code = parse_args(app, std::move(args))) return *code;
  if (!client.model.empty()) settings["model"] = client.model;
  if (temperature) settings["temperature"] = *temperature;
  if (max_tokens) settings["max_tokens"] = *max_tokens;
  auto http = client.open();
  if (!http.ok()) return fail(http.status());
  const auto ready = http->get("/v1/models");
  if (!ready.ok()) return fail(ready.status().with_context("no server; start one with: baton serve MODEL"));
  if (const Status ok = check_answer(*ready, "/v1/models"); !ok.ok()) return fail(ok);
  Chat chat(std::move(http).value(), std::move(settings), std::move(system));
  if (!quick.empty()) {
    const Status status = chat.say(quick);
    return status.ok() ? 0 : fail(status);
  }
  LineReader lines;
  while (const auto line = lines.next()) {
    if (line->empty()) continue;
    if (line->front() == '/') {
      if (!chat.command(*line)) break;
      continue;
    }
    if (const Status status = chat.say(*line); !status.ok()) fail(status);
  }
  return 0;
}

}  // namespace baton::app
