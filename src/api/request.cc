#include "api/request.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>

namespace baton::api {
namespace {

// A message's content as one text: a string, or the text parts of a list.
Result<std::string> content_text(const Json& content) {
  if (content.is_string()) return content.get<std::string>();
  if (content.is_null()) return std::string();
  if (!content.is_array()) return Status(Code::kInvalidArgument, "`content` must be a string or a list of parts");
  std::string text;
  for (const Json& part : content) {
    if (part.is_string()) {
      text += part.get<std::string>();
      continue;
    }
    const auto type = part.is_object() ? part.find("type") : part.end();
    if (!part.is_object() || type == part.end() || !type->is_string())
      return Status(Code::kInvalidArgument, "each part of `content` must be an object with a `type`");
    if (*type != "text")
      return Status(Code::kInvalidArgument, fmt::format("content parts of type {} are not supported, only \"text\"", type->dump()));
    const auto value = part.find("text");
    if (value == part.end() || !value->is_string())
      return Status(Code::kInvalidArgument, "a content part of type \"text\" must have a string `text`");
    text += value->get<std::string>();
  }
  return text;
}

// The messages with each content as one string, keys in the client's order.
Result<Json> normalize_messages(const Json& messages) {
  if (!messages.is_array()) return Status(Code::kInvalidArgument, "`messages` must be a list");
  if (messages.empty()) return Status(Code::kInvalidArgument, "`messages` must not be empty");
  Json out = Json::array();
  for (const Json& message : messages) {
    if (!message.is_object()) return Status(Code::kInvalidArgument, "each message must be an object with `role` and `content`");
    const auto role = message.find("role");
    if (role == message.end() || !role->is_string()) return Status(Code::kInvalidArgument, "each message must have a string `role`");
    Json copy = message;
    const auto content = message.find("content");
    if (content == message.end()) return Status(Code::kInvalidArgument, "each message must have `content`");
    BATON_ASSIGN_OR_RETURN(std::string text, content_text(*content));
    copy["content"] = std::move(text);
    out.push_back(std::move(copy));
  }
  return out;
}

// What is not implemented is refused by name: an answer that ignores it would be wrong.
void refuse_unsupported(Fields& fields, Endpoint endpoint) {
  if (const Json* tools = fields.find("tools"); tools && !(tools->is_array() && tools->empty())) {
    const Json* choice = fields.find("tool_choice");
    if (!choice || *choice != "none")
      fields.fail("tools", "tool calls are not supported by this version; send `tool_choice`: \"none\" to answer without them");
  }
  if (const Json* format = fields.find("response_format")) {
    const auto type = format->is_object() ? format->find("type") : format->end();
    if (type == format->end() || *type != "text")
      fields.fail("response_format", "only `response_format` {\"type\":\"text\"} is supported by this version");
  }
  for (const char* name : {"structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"})
    fields.refuse(name, "structured output comes in a later version");
  for (const char* name :
       {"bad_words", "allowed_token_ids", "truncate_prompt_tokens", "logits_processors", "prompt_embeds", "prompt_logprobs"})
    fields.refuse(name, "this version does not implement it");
  if (fields.boolean("use_beam_search", false)) fields.fail("use_beam_search", "beam search is not supported");
  if (endpoint == Endpoint::kChat) {
    fields.refuse("chat_template", "start the server with --chat-template instead");
    if (fields.boolean("continue_final_message", false)) fields.fail("continue_final_message", "`continue_final_message` is not supported");
    if (fields.boolean("echo", false)) fields.fail("echo", "`echo` is supported by /v1/completions only");
  } else if (const auto suffix = fields.string("suffix"); suffix && !suffix->empty()) {
    fields.fail("suffix", "`suffix` is not supported");
  }
}

void parse_logit_bias(Fields& fields, const FrontEnd& front, wire::SamplingParams& sampling) {
  const Json* bias = fields.find("logit_bias");
  if (!bias) return;
  if (!bias->is_object()) return fields.fail("logit_bias", "`logit_bias` must be an object of token id to number");
  if (bias->size() > 1024) return fields.fail("logit_bias", "`logit_bias` may have at most 1024 entries");
  for (const auto& [key, value] : bias->items()) {
    const bool digits = !key.empty() && key.size() < 10 && std::all_of(key.begin(), key.end(), [](char c) { return c >= '0' && c <= '9'; });
    const int id = digits ? std::stoi(key) : -1;
    if (id < 0 || id >= front.tokenizer->vocab_size())
      return fields.fail("logit_bias", fmt::format("`logit_bias` names token {}, which is not in the vocabulary of {}", key,
                                                   front.tokenizer->vocab_size()));
    if (!value.is_number() || !(std::abs(value.get<double>()) <= 100))
      return fields.fail("logit_bias", "values of `logit_bias` must be between -100 and 100");
    sampling.logit_bias.emplace_back(id, value.get<float>());
  }
  std::sort(sampling.logit_bias.begin(), sampling.logit_bias.end());
}

void parse_sampling(Fields& fields, const FrontEnd& front, wire::SamplingParams& s) {
  const SamplingDefaults& d = front.defaults;
  s.temperature = static_cast<float>(fields.number("temperature", 0.0, 2.0).value_or(d.temperature));
  s.top_p = static_cast<float>(fields.number("top_p", 0.0, 1.0).value_or(d.top_p));
  if (s.top_p <= 0) fields.fail("top_p", "`top_p` must be greater than 0");
  s.min_p = static_cast<float>(fields.number("min_p", 0.0, 1.0).value_or(d.min_p));
  s.top_k = static_cast<int>(fields.integer("top_k", -1, INT32_MAX).value_or(d.top_k));
  if (s.top_k < 0) s.top_k = 0;
  s.repetition_penalty = static_cast<float>(fields.number("repetition_penalty", 1e-3, 100.0).value_or(d.repetition_penalty));
  s.presence_penalty = static_cast<float>(fields.number("presence_penalty", -2.0, 2.0).value_or(0.0));
  s.frequency_penalty = static_cast<float>(fields.number("frequency_penalty", -2.0, 2.0).value_or(0.0));
  s.stop_token_ids = fields.ids("stop_token_ids", 64);
  s.eos_ids = d.eos_ids;
  s.ignore_eos = fields.boolean("ignore_eos", false);
  s.min_tokens = static_cast<int>(fields.integer("min_tokens", 0, INT32_MAX).value_or(0));
  parse_logit_bias(fields, front, s);
}

void parse_logprobs(Fields& fields, const FrontEnd& front, Endpoint endpoint, wire::SamplingParams& s) {
  if (endpoint == Endpoint::kCompletions) {
    if (const auto k = fields.integer("logprobs", 0, front.max_logprobs)) s.logprobs = static_cast<int>(*k);
    return;
  }
  const auto top = fields.integer("top_logprobs", 0, front.max_logprobs);
  if (fields.boolean("logprobs", false)) {
    s.logprobs = static_cast<int>(top.value_or(0));
  } else if (top && *top > 0) {
    fields.fail("top_logprobs", "`top_logprobs` needs `logprobs`: true");
  }
}

std::string context_clause(const FrontEnd& front) {
  return fmt::format("This model's maximum context length is {} tokens. However, ", front.max_model_len);
}
void refuse_length(Fields& fields, const FrontEnd& front, std::int64_t n_prompt) {
  fields.fail("input_tokens",
              context_clause(front) + fmt::format("your prompt contains {} input tokens, which leaves no room for an answer. "
                                                  "Please reduce the length of the input prompt.",
                                                  n_prompt));
}

// The prompts of a completion: a text, a list of texts, a list of ids, or a list of lists of ids.
void parse_prompts(Fields& fields, const FrontEnd& front, bool add_special, ParsedRequest& out, std::vector<std::vector<TokenId>>& ids) {
  const Json* prompt = fields.find("prompt");
  if (!prompt) return fields.fail("prompt", "`prompt` is required");
  const auto add_text = [&](const Json& text) {
    const auto& value = text.get_ref<const std::string&>();
    if (const Status fits = check_length(front, value.size(), "prompt"); !fits.ok()) return fields.fail("prompt", fits.message());
    auto encoded = front.tokenizer->encode(value, add_special);
    if (!encoded.ok()) return fields.fail("prompt", encoded.status().message());
    // Here already, so that a long list of such prompts costs no more than its first.
    if (std::ssize(*encoded) >= front.max_model_len) return refuse_length(fields, front, std::ssize(*encoded));
    ids.push_back(std::move(encoded).value());
    out.prompt_texts.push_back(value);
  };
  const auto add_ids = [&](const Json& list) {
    std::vector<TokenId> one;
    for (const Json& id : list) {
      if (!id.is_number_integer() || id.get<std::int64_t>() < 0 || id.get<std::int64_t>() >= front.tokenizer->vocab_size())
        return fields.fail("prompt", fmt::format("`prompt` contains {}, which is not a token id below {}", id.dump().substr(0, 40),
                                                 front.tokenizer->vocab_size()));
      one.push_back(static_cast<TokenId>(id.get<std::int64_t>()));
    }
    out.prompt_texts.push_back(front.tokenizer->decode(one, false));
    ids.push_back(std::move(one));
  };
  if (prompt->is_string()) return add_text(*prompt);
  if (!prompt->is_array())
    return fields.fail("prompt", "`prompt` must be a string, a list of strings, a list of token ids, or a list of such lists");
  if (prompt->empty()) return fields.fail("prompt", "`prompt` must not be empty");
  if (prompt->front().is_number()) return add_ids(*prompt);
  if (prompt->size() > kRequestChoicesMax)
    return fields.fail("prompt", fmt::format("`prompt` may hold at most {} prompts", kRequestChoicesMax));
  for (const Json& item : *prompt) {
    if (!fields.ok()) return;
    if (item.is_string()) {
      add_text(item);
    } else if (item.is_array()) {
      add_ids(item);
    } else {
      return fields.fail("prompt", "`prompt` must be a string, a list of strings, a list of token ids, or a list of such lists");
    }
  }
}

// Sets max_tokens from the request, the defaults, and what the context leaves.
void parse_max_tokens(Fields& fields, const FrontEnd& front, Endpoint endpoint, std::int64_t n_prompt, wire::SamplingParams& s) {
  const std::int64_t room = front.max_model_len - n_prompt;
  const char* name = fields.find("max_completion_tokens") ? "max_completion_tokens" : "max_tokens";
  const auto wanted = fields.integer(name, 1, INT64_MAX);
  if (!fields.ok()) return;
  if (room < 1) return refuse_length(fields, front, n_prompt);
  if (wanted && *wanted > room)
    return fields.fail(
        "input_tokens",
        context_clause(front) +
            fmt::format("you requested {} output tokens and your prompt contains {} input tokens, for a total of {} tokens. "
                        "Please reduce the length of the input prompt or the number of requested output tokens.",
                        *wanted, n_prompt,
                        static_cast<double>(*wanted) + static_cast<double>(n_prompt) > 9e18 ? INT64_MAX : *wanted + n_prompt));
  const std::int64_t fallback = front.defaults.max_tokens ? *front.defaults.max_tokens : endpoint == Endpoint::kChat ? room : 16;
  s.max_tokens = static_cast<int>(std::min(room, wanted.value_or(fallback)));
  if (s.min_tokens > s.max_tokens)
    fields.fail("min_tokens", fmt::format("`min_tokens` ({}) must not exceed the maximum of {} tokens", s.min_tokens, s.max_tokens));
}

void parse_choices(Fields& fields, Endpoint endpoint, const wire::SamplingParams& sampling, wire::GenerateRequest& request) {
  request.n = static_cast<int>(fields.integer("n", 1, kChoicesMax).value_or(1));
  const Json* prompt = endpoint == Endpoint::kCompletions ? fields.find("prompt") : nullptr;
  const bool several = prompt && prompt->is_array() && !prompt->empty() && !prompt->front().is_number();
  if (several && prompt->size() * static_cast<std::size_t>(request.n) > kRequestChoicesMax && request.n > 1)
    fields.fail("n", fmt::format("`n` of {} for each of {} prompts makes {} choices, a request may have at most {}", request.n,
                                 prompt->size(), prompt->size() * static_cast<std::size_t>(request.n), kRequestChoicesMax));
  if (request.n > 1 && sampling.temperature < 1e-5f)
    fields.fail("n", fmt::format("`n` must be 1 when using greedy sampling, got {}", request.n));
  const auto best_of = fields.integer("best_of", 1, kChoicesMax);
  if (best_of && *best_of != 1 && *best_of != request.n) fields.fail("best_of", "`best_of` other than `n` is not supported");
}

}  // namespace

Status check_length(const FrontEnd& front, std::size_t bytes, std::string_view what) {
  if (bytes <= front.longest_token_bytes * static_cast<std::size_t>(front.max_model_len)) return {};
  return Status(Code::kInvalidArgument, context_clause(front) + fmt::format("your {} of {} bytes cannot fit into it.", what, bytes));
}

namespace {

std::size_t text_bytes(const Json& json) {
  if (json.is_string()) return json.get_ref<const std::string&>().size();
  std::size_t bytes = 0;
  if (json.is_structured())
    for (const Json& item : json) bytes += text_bytes(item);
  return bytes;
}

// Before the template sees it: rendering is linear in the conversation, and a body may be far longer than any context.
Status check_conversation(const FrontEnd& front, const Json& messages) {
  BATON_RETURN_IF_ERROR(check_length(front, text_bytes(messages), "messages"));
  if (std::ssize(messages) <= front.max_model_len || !messages.is_array()) return {};
  return Status(Code::kInvalidArgument, context_clause(front) + fmt::format("your {} messages cannot fit into it.", messages.size()));
}

}  // namespace

Result<std::string> render_chat(const FrontEnd& front, const Json& body) {
  const auto messages = body.find("messages");
  if (messages == body.end() || messages->is_null()) return Status(Code::kInvalidArgument, "`messages` is required");
  BATON_RETURN_IF_ERROR(check_conversation(front, *messages));
  BATON_ASSIGN_OR_RETURN(const Json normalized, normalize_messages(*messages));
  std::string kwargs;
  if (const auto it = body.find("chat_template_kwargs"); it != body.end() && !it->is_null()) {
    if (!it->is_object()) return Status(Code::kInvalidArgument, "`chat_template_kwargs` must be an object");
    kwargs = it->dump();
    BATON_RETURN_IF_ERROR(check_length(front, kwargs.size(), "chat_template_kwargs"));
  }
  bool add_generation_prompt = true;
  if (const auto it = body.find("add_generation_prompt"); it != body.end() && it->is_boolean()) add_generation_prompt = it->get<bool>();
  return front.chat_template->render(normalized.dump(), "", kwargs, add_generation_prompt);
}

std::optional<ApiError> parse_request(const FrontEnd& front, Endpoint endpoint, const Json& body, ParsedRequest& out) {
  Fields fields(body);
  out.endpoint = endpoint;
  wire::GenerateRequest base;
  out.stream = fields.boolean("stream", false);
  if (const Json* options = fields.find("stream_options")) {
    if (!options->is_object()) {
      fields.fail("stream_options", "`stream_options` must be an object");
    } else if (!out.stream) {
      fields.fail("stream_options", "`stream_options` needs `stream`: true");
    } else {
      Fields inner(*options);
      out.include_usage = inner.boolean("include_usage", false);
      out.continuous_usage = inner.boolean("continuous_usage_stats", false);
      if (!inner.ok()) return inner.error();
    }
  }
  out.skip_special = fields.boolean("skip_special_tokens", true);
  out.include_stop = fields.boolean("include_stop_str_in_output", false);
  out.return_token_ids = fields.boolean("return_token_ids", false);
  out.tokens_as_ids = fields.boolean("return_tokens_as_token_ids", false);
  out.stops = fields.strings("stop", kStopStringsMax);
  refuse_unsupported(fields, endpoint);
  parse_sampling(fields, front, base.sampling);
  parse_logprobs(fields, front, endpoint, base.sampling);
  parse_choices(fields, endpoint, base.sampling, base);
  if (const auto priority = fields.integer("priority", INT32_MIN, INT32_MAX)) base.priority = static_cast<int>(*priority);
  if (const auto salt = fields.string("cache_salt")) base.cache_salt = *salt;
  base.timeout = front.request_timeout;
  if (const auto timeout = fields.number("timeout", 0.001, 86400.0))
    base.timeout = std::min(base.timeout, Duration(static_cast<std::int64_t>(*timeout * 1e6)));
  const auto seed = fields.integer("seed", INT64_MIN, INT64_MAX);
  if (!fields.ok()) return fields.error();

  std::vector<std::vector<TokenId>> ids;
  if (endpoint == Endpoint::kChat) {
    auto rendered = render_chat(front, body);
    if (!rendered.ok()) return ApiError{rendered.status(), "messages"};
    if (const Status fits = check_length(front, rendered->size(), "messages"); !fits.ok()) return ApiError{fits, "messages"};
    auto encoded = front.tokenizer->encode(*rendered, fields.boolean("add_special_tokens", false));
    if (!encoded.ok()) return ApiError{encoded.status(), "messages"};
    ids.push_back(std::move(encoded).value());
  } else {
    out.echo = fields.boolean("echo", false);
    parse_prompts(fields, front, fields.boolean("add_special_tokens", true), out, ids);
    if (out.echo) base.sampling.prompt_logprobs = base.sampling.logprobs;
  }
  for (std::vector<TokenId>& prompt : ids) {
    if (prompt.empty()) fields.fail(endpoint == Endpoint::kChat ? "messages" : "prompt", "the prompt has no tokens");
    wire::GenerateRequest request = base;
    parse_max_tokens(fields, front, endpoint, static_cast<std::int64_t>(prompt.size()), request.sampling);
    request.n_prompt = static_cast<std::int32_t>(prompt.size());
    request.ids = std::move(prompt);
    request.seed = seed ? static_cast<std::uint64_t>(*seed) : front.draw();
    out.prompts.push_back(std::move(request));
  }
  if (!fields.ok()) return fields.error();
  return std::nullopt;
}

}  // namespace baton::api
