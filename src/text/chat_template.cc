#include "text/chat_template.h"

#include "text/ffi.h"

namespace baton::text {

Result<std::unique_ptr<ChatTemplate>> ChatTemplate::create(const ChatTemplateOptions& options) {
  tk_template* handle = nullptr;
  tk_bytes error{};
  int code = tk_template_new(bytes_of(options.source), options.source.size(), bytes_of(options.bos_token), options.bos_token.size(),
                             bytes_of(options.eos_token), options.eos_token.size(), &handle, &error);
  if (code != TK_OK) return to_status(code, error);
  std::unique_ptr<ChatTemplate> chat_template(new ChatTemplate());
  chat_template->handle_ = handle;
  chat_template->clock_ = options.clock;
  return chat_template;
}

ChatTemplate::~ChatTemplate() { tk_template_free(static_cast<tk_template*>(handle_)); }

Result<std::string> ChatTemplate::render(std::string_view messages_json, std::string_view tools_json, std::string_view kwargs_json,
                                         bool add_generation_prompt) const {
  tk_template_input input{};
  input.messages = bytes_of(messages_json);
  input.messages_len = messages_json.size();
  input.tools = bytes_of(tools_json);
  input.tools_len = tools_json.size();
  input.kwargs = bytes_of(kwargs_json);
  input.kwargs_len = kwargs_json.size();
  input.add_generation_prompt = add_generation_prompt;
  input.now_unix_s = clock_ != nullptr ? clock_->unix_seconds() : SystemClock().unix_seconds();
  tk_bytes text{};
  tk_bytes error{};
  if (int code = tk_template_render(static_cast<const tk_template*>(handle_), &input, &text, &error); code != TK_OK)
    return to_status(code, error);
  return take(text);
}

std::string_view default_chat_template() {
  return "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
         "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
}

}  // namespace baton::text
