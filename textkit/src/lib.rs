//! The C border of textkit; `textkit.h` is its manual. Rules that hold for every function here: pointers come from C and are checked
//! where a mistake is likely, no panic crosses the border, nothing is global, and every error is a code plus a message.

#![allow(clippy::missing_safety_doc, clippy::too_many_arguments)] // every function's contract is in textkit.h

mod python;
mod safetensors_header;
mod template;
mod tokenizer;

use std::panic::{catch_unwind, AssertUnwindSafe};

pub const OK: i32 = 0;
pub const INVALID: i32 = 1;
pub const INTERNAL: i32 = 2;

/// What went wrong, as the caller of a C function sees it.
pub struct Failure {
    pub code: i32,
    pub message: String,
}

pub fn invalid(message: impl Into<String>) -> Failure {
    Failure { code: INVALID, message: message.into() }
}

/// Bytes owned by Rust and lent to C until `tk_bytes_free`.
#[repr(C)]
pub struct TkBytes {
    data: *mut u8,
    len: usize,
}

#[repr(C)]
pub struct TkIds {
    data: *mut u32,
    len: usize,
}

fn leak<T>(v: Vec<T>) -> (*mut T, usize) {
    let boxed = v.into_boxed_slice();
    let len = boxed.len();
    (Box::into_raw(boxed) as *mut T, len)
}

unsafe fn reclaim<T>(data: *mut T, len: usize) {
    if !data.is_null() {
        drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(data, len)));
    }
}

impl TkBytes {
    fn from(bytes: Vec<u8>) -> TkBytes {
        let (data, len) = leak(bytes);
        TkBytes { data, len }
    }
}

impl TkIds {
    fn from(ids: Vec<u32>) -> TkIds {
        let (data, len) = leak(ids);
        TkIds { data, len }
    }
}

unsafe fn put<T>(out: *mut T, value: T) {
    if !out.is_null() {
        out.write(value);
    }
}

/// A slice from C; a null pointer is an empty slice.
unsafe fn slice<'a, T>(data: *const T, len: usize) -> &'a [T] {
    if data.is_null() || len == 0 {
        &[]
    } else {
        std::slice::from_raw_parts(data, len)
    }
}

pub fn utf8<'a>(bytes: &'a [u8], what: &str) -> Result<&'a str, Failure> {
    std::str::from_utf8(bytes).map_err(|e| invalid(format!("{what} is not valid UTF-8 at byte {}", e.valid_up_to())))
}

/// Runs `body`; a panic becomes INTERNAL. A failure's message goes to `error`.
unsafe fn guard(error: *mut TkBytes, body: impl FnOnce() -> Result<(), Failure>) -> i32 {
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return OK,
        Ok(Err(failure)) => failure,
        Err(panic) => {
            let text = panic
                .downcast_ref::<&str>()
                .map(|s| s.to_string())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "unknown panic".to_string());
            Failure { code: INTERNAL, message: format!("textkit panicked: {text}") }
        }
    };
    if !error.is_null() {
        error.write(TkBytes::from(failure.message.into_bytes())); // only where somebody will free it
    }
    failure.code
}

#[no_mangle]
pub unsafe extern "C" fn tk_bytes_free(bytes: TkBytes) {
    reclaim(bytes.data, bytes.len);
}

#[no_mangle]
pub unsafe extern "C" fn tk_ids_free(ids: TkIds) {
    reclaim(ids.data, ids.len);
}

// ---- tokenizer

#[no_mangle]
pub unsafe extern "C" fn tk_tokenizer_new(json: *const u8, len: usize, out: *mut *mut tokenizer::Tokenizer, error: *mut TkBytes) -> i32 {
    guard(error, || {
        let t = tokenizer::Tokenizer::new(slice(json, len))?;
        put(out, Box::into_raw(Box::new(t)));
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn tk_tokenizer_free(t: *mut tokenizer::Tokenizer) {
    if !t.is_null() {
        let _ = catch_unwind(AssertUnwindSafe(|| drop(Box::from_raw(t))));
    }
}

#[no_mangle]
pub unsafe extern "C" fn tk_tokenizer_encode(
    t: *const tokenizer::Tokenizer,
    text: *const u8,
    len: usize,
    add_special: bool,
    out: *mut TkIds,
    error: *mut TkBytes,
) -> i32 {
    guard(error, || {
        let t = t.as_ref().ok_or_else(|| invalid("no tokenizer"))?;
        let ids = t.encode(utf8(slice(text, len), "the text")?, add_special)?;
        put(out, TkIds::from(ids));
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn tk_tokenizer_decode(
    t: *const tokenizer::Tokenizer,
    ids: *const u32,
    len: usize,
    skip_special: bool,
    out: *mut TkBytes,
    error: *mut TkBytes,
) -> i32 {
    guard(error, || {
        let t = t.as_ref().ok_or_else(|| invalid("no tokenizer"))?;
        put(out, TkBytes::from(t.decode(slice(ids, len), skip_special)?.into_bytes()));
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn tk_tokenizer_token_bytes(t: *const tokenizer::Tokenizer, id: u32, len: *mut usize) -> *const u8 {
    let bytes: &[u8] = match t.as_ref() {
        Some(t) => t.token_bytes(id),
        None => &[],
    };
    put(len, bytes.len());
    bytes.as_ptr()
}

#[no_mangle]
pub unsafe extern "C" fn tk_tokenizer_is_special(t: *const tokenizer::Tokenizer, id: u32) -> bool {
    t.as_ref().is_some_and(|t| t.is_special(id))
}

#[no_mangle]
pub unsafe extern "C" fn tk_tokenizer_token_to_id(t: *const tokenizer::Tokenizer, token: *const u8, len: usize) -> i64 {
    let lookup = || {
        let token = std::str::from_utf8(slice(token, len)).ok()?;
        t.as_ref()?.token_to_id(token)
    };
    match catch_unwind(AssertUnwindSafe(lookup)) {
        Ok(Some(id)) => i64::from(id),
        _ => -1,
    }
}

#[no_mangle]
pub unsafe extern "C" fn tk_tokenizer_vocab_size(t: *const tokenizer::Tokenizer) -> usize {
    t.as_ref().map_or(0, |t| t.vocab_size())
}

// ---- chat template

/// `tk_template_input` of textkit.h.
#[repr(C)]
pub struct TkTemplateInput {
    messages: *const u8,
    messages_len: usize,
    tools: *const u8,
    tools_len: usize,
    kwargs: *const u8,
    kwargs_len: usize,
    add_generation_prompt: bool,
    now_unix_s: i64,
}

#[no_mangle]
pub unsafe extern "C" fn tk_template_new(
    source: *const u8,
    source_len: usize,
    bos: *const u8,
    bos_len: usize,
    eos: *const u8,
    eos_len: usize,
    out: *mut *mut template::ChatTemplate,
    error: *mut TkBytes,
) -> i32 {
    guard(error, || {
        let source = utf8(slice(source, source_len), "the chat template")?;
        let bos = utf8(slice(bos, bos_len), "the BOS token")?;
        let eos = utf8(slice(eos, eos_len), "the EOS token")?;
        let t = template::ChatTemplate::new(source, bos, eos)?;
        put(out, Box::into_raw(Box::new(t)));
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn tk_template_free(t: *mut template::ChatTemplate) {
    if !t.is_null() {
        let _ = catch_unwind(AssertUnwindSafe(|| drop(Box::from_raw(t))));
    }
}

#[no_mangle]
pub unsafe extern "C" fn tk_template_render(
    t: *const template::ChatTemplate,
    input: *const TkTemplateInput,
    out: *mut TkBytes,
    error: *mut TkBytes,
) -> i32 {
    guard(error, || {
        let t = t.as_ref().ok_or_else(|| invalid("no chat template"))?;
        let input = input.as_ref().ok_or_else(|| invalid("no input"))?;
        let text = t.render(&template::Input {
            messages: slice(input.messages, input.messages_len),
            tools: slice(input.tools, input.tools_len),
            kwargs: slice(input.kwargs, input.kwargs_len),
            add_generation_prompt: input.add_generation_prompt,
            now_unix_s: input.now_unix_s,
        })?;
        put(out, TkBytes::from(text.into_bytes()));
        Ok(())
    })
}

// ---- safetensors

#[no_mangle]
pub unsafe extern "C" fn tk_safetensors_header(head: *const u8, len: usize, file_size: u64, out: *mut TkBytes, error: *mut TkBytes) -> i32 {
    guard(error, || {
        let json = safetensors_header::describe(slice(head, len), file_size)?;
        put(out, TkBytes::from(json.into_bytes()));
        Ok(())
    })
}
