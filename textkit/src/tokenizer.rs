//! Hugging Face's tokenizers behind a handle, plus a table of the bytes that each token stands for.

use crate::{invalid, Failure};
use std::collections::HashMap;
use tokenizers::Tokenizer as HfTokenizer;

pub struct Tokenizer {
    inner: HfTokenizer,
    // bytes of token `id` are text[ends[id - 1]..ends[id]]
    text: Vec<u8>,
    ends: Vec<u32>,
    special: Vec<bool>,
}

/// How a token's text becomes bytes, which the decoder of tokenizer.json tells.
#[derive(Clone, Copy, PartialEq)]
enum Alphabet {
    ByteLevel,     // GPT-2's printable stand-ins for the 256 bytes
    SentencePiece, // U+2581 is a space, <0xAB> is a byte
    Plain,
}

// A vocabulary has a few hundred thousand ids; a file that names a far larger one is damaged and must not size a table.
const MAX_ID: u32 = 16 << 20;

impl Tokenizer {
    pub fn new(json: &[u8]) -> Result<Tokenizer, Failure> {
        let mut inner = HfTokenizer::from_bytes(json).map_err(|e| invalid(format!("tokenizer.json does not parse: {e}")))?;
        // A tokenizer.json may carry limits from training; they would silently cut prompts.
        inner.with_truncation(None).map_err(|e| invalid(format!("tokenizer.json: {e}")))?;
        inner.with_padding(None);

        let mut tokens: Vec<(u32, String)> = inner.get_vocab(true).into_iter().map(|(text, id)| (id, text)).collect();
        tokens.sort();
        let size = match tokens.last() {
            Some((id, _)) if *id >= MAX_ID => return Err(invalid(format!("tokenizer.json: token id {id} is over {MAX_ID}"))),
            Some((id, _)) => *id as usize + 1,
            None => return Err(invalid("tokenizer.json: the vocabulary is empty")),
        };
        let mut special = vec![false; size];
        for (id, token) in inner.get_added_tokens_decoder() {
            if let Some(s) = special.get_mut(id as usize) {
                *s = token.special;
            }
        }
        let alphabet = alphabet_of(&inner);
        let byte_of = byte_level_alphabet();
        let mut text = Vec::new();
        let mut ends = Vec::with_capacity(size);
        for (id, token) in &tokens {
            while ends.len() < *id as usize {
                ends.push(text.len() as u32); // a hole in the numbering
            }
            if ends.len() == *id as usize {
                append_bytes(token, alphabet, &byte_of, &mut text);
                ends.push(text.len() as u32);
            }
        }
        Ok(Tokenizer { inner, text, ends, special })
    }

    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, Failure> {
        let encoding = self.inner.encode_fast(text, add_special).map_err(|e| invalid(format!("the text cannot be tokenized: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, Failure> {
        self.inner.decode(ids, skip_special).map_err(|e| invalid(format!("the tokens cannot be decoded: {e}")))
    }

    pub fn token_bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(end) = self.ends.get(id) else { return &[] };
        let begin = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.text[begin as usize..*end as usize]
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    pub fn vocab_size(&self) -> usize {
        self.ends.len()
    }
}

fn alphabet_of(tokenizer: &HfTokenizer) -> Alphabet {
    let Some(decoder) = tokenizer.get_decoder() else { return Alphabet::Plain };
    let Ok(json) = serde_json::to_value(decoder) else { return Alphabet::Plain };
    let mut types = Vec::new();
    collect_types(&json, &mut types);
    if types.iter().any(|t| t == "ByteLevel") {
        Alphabet::ByteLevel
    } else if types.iter().any(|t| t == "ByteFallback" || t == "Metaspace") {
        Alphabet::SentencePiece
    } else {
        Alphabet::Plain
    }
}

fn collect_types(decoder: &serde_json::Value, out: &mut Vec<String>) {
    if let Some(t) = decoder.get("type").and_then(|t| t.as_str()) {
        out.push(t.to_string());
    }
    for inner in decoder.get("decoders").and_then(|d| d.as_array()).into_iter().flatten() {
        collect_types(inner, out);
    }
}

/// GPT-2's bijection of bytes and printable characters: printable Latin-1 stands for itself, the rest follow from U+0100.
fn byte_level_alphabet() -> HashMap<char, u8> {
    let mut map = HashMap::new();
    let mut next = 0x100u32;
    for b in 0u8..=255 {
        let itself = matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let c = if itself {
            b as char
        } else {
            next += 1;
            char::from_u32(next - 1).unwrap_or('\u{FFFD}')
        };
        map.insert(c, b);
    }
    map
}

fn append_bytes(token: &str, alphabet: Alphabet, byte_of: &HashMap<char, u8>, out: &mut Vec<u8>) {
    match alphabet {
        Alphabet::ByteLevel => {
            // As the library decodes: a token with any other character in it (an added token) stands for its own text.
            let bytes: Option<Vec<u8>> = token.chars().map(|c| byte_of.get(&c).copied()).collect();
            out.extend(bytes.unwrap_or_else(|| token.as_bytes().to_vec()));
        }
        Alphabet::SentencePiece => match byte_token(token) {
            Some(b) => out.push(b),
            None => out.extend(token.replace('\u{2581}', " ").into_bytes()),
        },
        Alphabet::Plain => out.extend(token.as_bytes()),
    }
}

/// `<0x0A>` is byte 10.
fn byte_token(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() != 2 {
        return None;
    }
    u8::from_str_radix(hex, 16).ok()
}
