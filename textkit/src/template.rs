//! Chat templates: minijinja set up like the Jinja2 environment of Hugging Face's `apply_chat_template`.

use crate::python::{json_dumps, str_of, JsonStyle};
use crate::{invalid, utf8, Failure};
use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, UndefinedBehavior};
use minijinja_contrib::pycompat;

const NAME: &str = "chat_template";
// Instructions one rendering may take: some seconds at worst, and thousands of times what a long conversation needs.
const FUEL: u64 = 50_000_000;
// What `render` itself passes; a client's chat_template_kwargs must not replace them.
const RESERVED: [&str; 3] = ["messages", "tools", "add_generation_prompt"];

pub struct ChatTemplate {
    env: Environment<'static>,
    bos: String,
    eos: String,
}

pub struct Input<'a> {
    pub messages: &'a [u8],
    pub tools: &'a [u8],
    pub kwargs: &'a [u8],
    pub add_generation_prompt: bool,
    pub now_unix_s: i64,
}

/// The text that a template gave to raise_exception.
#[derive(Debug)]
struct Raised(String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

impl ChatTemplate {
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<ChatTemplate, Failure> {
        let mut env = Environment::new();
        env.set_trim_blocks(true);
        env.set_lstrip_blocks(true);
        env.set_undefined_behavior(UndefinedBehavior::Lenient);
        env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        env.set_fuel(Some(FUEL));
        env.set_unknown_method_callback(method);
        env.set_formatter(|out, state, value| match value.kind() {
            ValueKind::Number | ValueKind::Seq | ValueKind::Map => match str_of(value) {
                Some(text) => out.write_str(&text).map_err(Error::from),
                None => minijinja::escape_formatter(out, state, value),
            },
            _ => minijinja::escape_formatter(out, state, value),
        });
        env.add_filter("tojson", tojson);
        env.add_filter("fromjson", fromjson);
        env.add_filter("string", |value: Value| str_of(&value).map_or_else(|| Value::from(value.to_string()), Value::from));
        env.add_filter("trim", |value: &Value, chars: Option<&str>| {
            let text = str_of(value).unwrap_or_else(|| value.to_string());
            match chars {
                Some(chars) => text.trim_matches(|c| chars.contains(c)).to_string(),
                None => text.trim().to_string(),
            }
        });
        // minijinja's own tests differ from Jinja2's: none iterates there, and a string is no sequence.
        env.add_test("iterable", |value: &Value| !matches!(value.kind(), ValueKind::None | ValueKind::Bool | ValueKind::Number));
        env.add_test("sequence", |value: &Value| !matches!(value.kind(), ValueKind::None | ValueKind::Bool | ValueKind::Number));
        env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
        });
        env.add_function("strftime_now", strftime_now);
        env.add_template_owned(NAME, without_generation_tags(source)).map_err(|e| invalid(format!("chat template: {}", describe(&e))))?;
        Ok(ChatTemplate { env, bos: bos.to_string(), eos: eos.to_string() })
    }

    pub fn render(&self, input: &Input) -> Result<String, Failure> {
        let mut context: Vec<(String, Value)> = vec![
            ("bos_token".into(), Value::from(self.bos.as_str())),
            ("eos_token".into(), Value::from(self.eos.as_str())),
            ("documents".into(), Value::from(())),
            (NOW.into(), Value::from(input.now_unix_s)),
        ];
        let kwargs = parse(input.kwargs, "chat_template_kwargs")?;
        match kwargs.kind() {
            ValueKind::None => {}
            ValueKind::Map => {
                for key in kwargs.try_iter().map_err(|e| invalid(e.to_string()))? {
                    let name = key.to_string();
                    if RESERVED.contains(&name.as_str()) || name == NOW {
                        return Err(invalid(format!("chat_template_kwargs must not set '{name}'")));
                    }
                    context.push((name, kwargs.get_item(&key).map_err(|e| invalid(e.to_string()))?));
                }
            }
            _ => return Err(invalid("chat_template_kwargs must be a JSON object")),
        }
        context.push(("messages".into(), parse(input.messages, "messages")?));
        context.push(("tools".into(), parse(input.tools, "tools")?));
        context.push(("add_generation_prompt".into(), Value::from(input.add_generation_prompt)));

        let template = self.env.get_template(NAME).map_err(|e| invalid(format!("chat template: {}", describe(&e))))?;
        template.render(context.into_iter().collect::<Value>()).map_err(|e| match raised(&e) {
            Some(message) => invalid(message),
            None => invalid(format!("chat template: {}", describe(&e))),
        })
    }
}

/// JSON text as a template value with its key order; nothing is None.
fn parse(json: &[u8], what: &str) -> Result<Value, Failure> {
    if json.is_empty() {
        return Ok(Value::from(()));
    }
    utf8(json, what)?;
    serde_json::from_slice(json).map_err(|e| invalid(format!("{what}: {e}")))
}

fn describe(e: &Error) -> String {
    let reason = match e.detail() {
        Some(detail) => format!("{}: {detail}", e.kind()),
        None => e.kind().to_string(),
    };
    match e.line() {
        Some(line) => format!("line {line}: {reason}"),
        None => reason,
    }
}

fn raised(e: &Error) -> Option<String> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(e);
    while let Some(c) = cause {
        if let Some(Raised(message)) = c.downcast_ref::<Raised>() {
            return Some(message.clone());
        }
        cause = c.source();
    }
    None
}

/// Hugging Face marks the assistant's part with {% generation %}, which renders as its content: here as an empty {% with %}.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(end) = rest[start..].find("%}").map(|n| start + n) else { break };
        let inside = rest[start + 2..end].trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        out.push_str(&rest[..start]);
        match inside {
            "generation" => out.push_str(&rest[start..end].replace("generation", "with")),
            "endgeneration" => out.push_str(&rest[start..end].replace("endgeneration", "endwith")),
            _ => out.push_str(&rest[start..end]),
        }
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

fn method(state: &State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match (name, value.as_str(), args) {
        ("removeprefix", Some(s), [prefix]) => Ok(Value::from(s.strip_prefix(prefix.as_str().unwrap_or_default()).unwrap_or(s))),
        ("removesuffix", Some(s), [suffix]) => Ok(Value::from(s.strip_suffix(suffix.as_str().unwrap_or_default()).unwrap_or(s))),
        _ => pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False), as Hugging Face defines it.
fn tojson(value: &Value, positional: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let argument = |index: usize, name: &str| -> Result<Option<Value>, Error> {
        let by_name: Option<Value> = kwargs.get(name)?;
        Ok(by_name.or_else(|| positional.get(index).cloned()).filter(|v| !v.is_none()))
    };
    let ensure_ascii = argument(0, "ensure_ascii")?;
    let indent = argument(1, "indent")?;
    let separators = argument(2, "separators")?;
    let sort_keys = argument(3, "sort_keys")?;
    kwargs.assert_all_used()?;
    let indent = match indent {
        None => None,
        Some(v) => Some(match v.as_str() {
            Some(s) => s.to_string(),
            None => " ".repeat(usize::try_from(v)?.min(64)),
        }),
    };
    let mut item_separator = if indent.is_some() { "," } else { ", " }.to_string();
    let mut key_separator = ": ".to_string();
    if let Some(pair) = separators {
        item_separator = pair.get_item_by_index(0)?.to_string();
        key_separator = pair.get_item_by_index(1)?.to_string();
    }
    let style = JsonStyle {
        ensure_ascii: ensure_ascii.is_some_and(|v| v.is_true()),
        indent,
        item_separator,
        key_separator,
        sort_keys: sort_keys.is_some_and(|v| v.is_true()),
    };
    json_dumps(value, &style)
}

fn fromjson(text: &str) -> Result<Value, Error> {
    serde_json::from_str(text).map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("fromjson: {e}")))
}

// The moment of rendering travels in the context, so that the caller's clock decides and a test can pin it.
const NOW: &str = "__now_unix_s";

/// datetime.now().strftime(format), in local time.
fn strftime_now(state: &State, format: &str) -> Result<String, Error> {
    let now = state.lookup(NOW).and_then(|v| v.as_i64()).unwrap_or(0) as libc::time_t;
    let fail = |what: &str| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {what}"));
    let c_format = std::ffi::CString::new(format).map_err(|_| fail("the format contains a zero byte"))?;
    if format.is_empty() {
        return Ok(String::new());
    }
    let mut buffer = vec![0u8; 64 + 32 * format.len()];
    // SAFETY: both functions write only into the buffers given, whose sizes are given too.
    let written = unsafe {
        let mut parts: libc::tm = std::mem::zeroed();
        if libc::localtime_r(&now, &mut parts).is_null() {
            return Err(fail("the time cannot be represented"));
        }
        libc::strftime(buffer.as_mut_ptr().cast(), buffer.len(), c_format.as_ptr(), &parts)
    };
    buffer.truncate(written);
    String::from_utf8(buffer).map_err(|_| fail("the result is not UTF-8"))
}
