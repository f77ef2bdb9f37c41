#include "app/bench/text_side.h"

namespace baton::app {

Result<TextSide> load_text_side(const model::ModelFiles& files) {
  TextSide side;
  BATON_ASSIGN_OR_RETURN(const model::TextFiles text, files.text());
  BATON_ASSIGN_OR_RETURN(side.tokenizer, text::Tokenizer::from_json(text.tokenizer_json));
  text::ChatTemplateOptions options;
  options.source = text.chat_template.empty() ? text::default_chat_template() : text.chat_template;
  options.bos_token = text.bos_token;
  options.eos_token = text.eos_token;
  BATON_ASSIGN_OR_RETURN(side.chat_template, text::ChatTemplate::create(options));
  return side;
}

}  // namespace baton::app
