#pragma once
// What a benchmark needs of a model to make prompts: its tokenizer and its chat template.

#include <memory>

#include "base/status.h"
#include "model/model_files.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace baton::app {

struct TextSide {
  std::unique_ptr<text::Tokenizer> tokenizer;
  std::unique_ptr<text::ChatTemplate> chat_template;  // the model's, or the default one if it has none
};

Result<TextSide> load_text_side(const model::ModelFiles& files);

}  // namespace baton::app
