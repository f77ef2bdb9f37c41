#pragma once
// Chat templates in Jinja, as Hugging Face's `apply_chat_template` renders them.

#include <memory>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/status.h"

namespace baton::text {

struct ChatTemplateOptions {
  std::string source;     // the Jinja text
  std::string bos_token;  // texts, "" if the model has none
  std::string eos_token;
  const Clock* clock = nullptr;  // for strftime_now; borrowed; the system's if null
};

class ChatTemplate {
 public:
  // kInvalidArgument with line and reason if the source does not parse.
  static Result<std::unique_ptr<ChatTemplate>> create(const ChatTemplateOptions& options);
  ~ChatTemplate();
  // `messages_json`, `tools_json`, `kwargs_json`: JSON text as the client sent it (key order is kept); "" for none.
  // kInvalidArgument with the template's own message if it raises.
  Result<std::string> render(std::string_view messages_json, std::string_view tools_json, std::string_view kwargs_json,
                             bool add_generation_prompt) const;

 private:
  ChatTemplate() = default;
  void* handle_ = nullptr;  // textkit's
  const Clock* clock_ = nullptr;
};

// A template for models whose files carry none (ChatML); a warning says so at start.
std::string_view default_chat_template();

}  // namespace baton::text
