//! Entries of a kernel file and the contract block above each of them. Shared by `build.rs`, which
//! refuses a kernel whose contract is missing or incomplete, and `tests/kernels`, which compare it
//! with what the compiler made.

use std::fmt;

/// The fields of a contract block, in the order in which they must stand. `source` follows
/// `launcher` on its line.
pub(crate) const FIELDS: [&str; 12] = [
    "computes",
    "operands",
    "launch",
    "alignment",
    "aliasing",
    "traffic",
    "arithmetic",
    "determinism",
    "edge cases",
    "resources",
    "launcher",
    "source",
];

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) file: String,
    /// Counted from 1.
    pub(crate) line: usize,
    pub(crate) message: String,
}

impl Problem {
    pub(crate) fn new(file: &str, line: usize, message: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line, message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.message)
    }
}

/// An `extern "C" __global__` function.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) line: usize,
    pub(crate) params: Vec<Param>,
    /// In the order of [`FIELDS`].
    pub(crate) contract: Vec<String>,
}

impl Entry {
    /// A field's text; continuation lines are joined by spaces.
    pub(crate) fn field(&self, name: &str) -> &str {
        let position = FIELDS.iter().position(|field| *field == name);
        position.and_then(|i| self.contract.get(i)).map_or("", String::as_str)
    }

    /// The most registers a thread may use.
    pub(crate) fn register_budget(&self) -> Option<u32> {
        register_budget(self.field("resources"))
    }
}

/// A parameter of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Param {
    pub(crate) name: String,
    /// The type, with single spaces.
    pub(crate) type_name: String,
}

impl Param {
    pub(crate) fn is_pointer(&self) -> bool {
        self.type_name.contains('*')
    }

    /// A pointer to what must not be written: `const` belongs to what the last `*` points to.
    pub(crate) fn is_const_pointer(&self) -> bool {
        self.type_name.rsplit_once('*').is_some_and(|(target, _)| {
            let mut words = target.split_whitespace();
            if target.contains('*') {
                words.next_back() == Some("const")
            } else {
                words.any(|word| word == "const")
            }
        })
    }
}

/// Every entry of a kernel file with its contract, or everything that is wrong with them.
pub(crate) fn entries(file: &str, text: &str) -> Result<Vec<Entry>, Vec<Problem>> {
    let code = without_comments(text);
    let (mut found, mut problems) = (Vec::new(), Vec::new());
    for (at, _) in code.match_indices("__global__") {
        match entry(file, text, &code, at) {
            Ok(entry) => found.push(entry),
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() { Ok(found) } else { Err(problems) }
}

fn entry(file: &str, text: &str, code: &str, at: usize) -> Result<Entry, Problem> {
    let line = line_of(code, at);
    let problem = |line: usize, message: String| Err(Problem::new(file, line, message));
    if in_directive(code, line) {
        return problem(
            line,
            "an entry made by a macro cannot be compared with its contract; write it out".into(),
        );
    }
    let before = code.get(..at).unwrap_or_default().trim_end();
    let Some(start) = before
        .strip_suffix("\"C\"")
        .map(str::trim_end)
        .and_then(|before| before.strip_suffix("extern").map(str::len))
    else {
        return problem(
            line,
            "`__global__` without `extern \"C\"` directly before it: the host finds entries by \
             their plain name"
                .into(),
        );
    };
    let first_line = line_of(code, start);
    let declaration = code.get(at + "__global__".len()..).unwrap_or_default();
    let Some((name, params)) = signature(declaration) else {
        return problem(
            line,
            "expected `void __launch_bounds__(…) name(parameters) {` after `__global__`".into(),
        );
    };
    let Some(params) = params.iter().map(|text| param(text)).collect::<Option<Vec<Param>>>() else {
        return problem(line, format!("entry `{name}`: every parameter needs a type and a name"));
    };
    let contract = contract(file, text, &name, first_line)?;
    Ok(Entry { name, line: first_line, params, contract })
}

/// Reads the block of comment lines that ends directly above `line`.
fn contract(file: &str, text: &str, name: &str, line: usize) -> Result<Vec<String>, Problem> {
    let lines: Vec<&str> = text.lines().collect();
    let above = lines.get(..line - 1).unwrap_or_default();
    let length = above.iter().rev().take_while(|line| line.starts_with("//")).count();
    let first = above.len() - length;
    let Some((title, rest)) = above.get(first..).and_then(<[&str]>::split_first) else {
        return Err(Problem::new(
            file,
            line,
            format!(
                "entry `{name}` has no contract block directly above it; its first line is \
                 `// {name}`, its fields are: {}",
                FIELDS.join(", ")
            ),
        ));
    };
    if title.trim_start_matches("//").trim() != name {
        return Err(Problem::new(
            file,
            first + 1,
            format!("the contract block of `{name}` must begin with `// {name}`, found `{title}`"),
        ));
    }
    let mut values: Vec<String> = Vec::new();
    for (i, text) in rest.iter().enumerate() {
        let number = first + 2 + i;
        let content = text.trim_start_matches("//");
        let indent = content.len() - content.trim_start().len();
        let content = content.trim();
        if indent > 3 {
            let Some(value) = values.last_mut() else {
                return Err(Problem::new(
                    file,
                    number,
                    format!("the contract of `{name}` begins with a continuation line"),
                ));
            };
            *value = format!("{value} {content}").trim_start().to_owned();
            continue;
        }
        let expected = FIELDS.get(values.len()).copied().unwrap_or("nothing more");
        let value = content
            .strip_prefix(expected)
            .filter(|value| indent == 3 && (value.is_empty() || value.starts_with(' ')));
        let Some(value) = value else {
            return Err(Problem::new(
                file,
                number,
                format!(
                    "the contract of `{name}`: expected the field `{expected}`, indented by three \
                     spaces, found `{content}`; the fields are, in this order: {}",
                    FIELDS.join(", ")
                ),
            ));
        };
        values.push(value.trim().to_owned());
        if expected == "launcher" {
            let value = values.pop().unwrap_or_default();
            let (launcher, source) = value.split_once("  source").unwrap_or((&value, ""));
            values.extend([launcher.trim().to_owned(), source.trim().to_owned()]);
        }
    }
    for (i, field) in FIELDS.iter().enumerate() {
        if values.get(i).is_none_or(String::is_empty) {
            return Err(Problem::new(
                file,
                first + 1,
                format!(
                    "the contract of `{name}` lacks the field `{field}` (\"none\" is an answer)"
                ),
            ));
        }
    }
    let resources = values.get(9).map(String::as_str).unwrap_or_default();
    if register_budget(resources).is_none() {
        return Err(Problem::new(
            file,
            first + 1,
            format!(
                "the contract of `{name}`: `resources` must read `<= N registers, 0 spills`, found \
                 `{resources}`"
            ),
        ));
    }
    Ok(values)
}

fn register_budget(resources: &str) -> Option<u32> {
    let (number, rest) = resources.strip_prefix("<= ")?.split_once(" registers, 0 spills")?;
    if !(rest.is_empty() || rest.starts_with([' ', ',', ';'])) {
        return None;
    }
    number.parse().ok()
}

/// The name and the parameters' texts of what follows `__global__`.
fn signature(declaration: &str) -> Option<(String, Vec<String>)> {
    let mut rest = declaration.trim_start();
    loop {
        let end = rest.find(|c: char| !is_identifier(c)).filter(|end| *end > 0)?;
        let (word, after) = rest.split_at(end);
        rest = after.trim_start();
        if !rest.starts_with('(') {
            continue;
        }
        let inner = balanced(rest)?;
        rest = rest.get(inner.len() + 2..)?.trim_start();
        if word.starts_with("__") {
            continue;
        }
        return rest.starts_with('{').then(|| (word.to_owned(), split_params(inner)));
    }
}

/// What stands between the parenthesis that `text` begins with and its partner.
fn balanced(text: &str) -> Option<&str> {
    let mut depth = 0_usize;
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return text.get(1..i);
        }
    }
    None
}

fn split_params(text: &str) -> Vec<String> {
    let (mut params, mut depth, mut current) = (Vec::new(), 0_i32, String::new());
    for c in text.chars() {
        match c {
            '(' | '<' | '[' => depth += 1,
            ')' | '>' | ']' => depth -= 1,
            _ => {}
        }
        if c == ',' && depth == 0 {
            params.push(std::mem::take(&mut current));
        } else {
            current.push(c);
        }
    }
    params.push(current);
    params.retain(|param| !param.trim().is_empty() && param.trim() != "void");
    params
}

fn param(text: &str) -> Option<Param> {
    let words = text.replace('*', " * ");
    let words: Vec<&str> = words
        .split_whitespace()
        .filter(|word| !matches!(*word, "__restrict__" | "__grid_constant__"))
        .collect();
    let (name, type_name) = words.split_last()?;
    let plain = name.chars().all(is_identifier) && !name.starts_with(|c: char| c.is_ascii_digit());
    (plain && !type_name.is_empty())
        .then(|| Param { name: (*name).to_owned(), type_name: type_name.join(" ") })
}

fn is_identifier(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text.get(..at).unwrap_or_default().matches('\n').count()
}

/// Whether a line belongs to a preprocessor directive, also by continuation.
fn in_directive(code: &str, line: usize) -> bool {
    let lines: Vec<&str> = code.lines().collect();
    let mut index = line - 1;
    while index > 0 && lines.get(index - 1).is_some_and(|line| line.trim_end().ends_with('\\')) {
        index -= 1;
    }
    lines.get(index).is_some_and(|line| line.trim_start().starts_with('#'))
}

/// The text with comments replaced by spaces, so that positions and lines stay what they were.
pub(crate) fn without_comments(text: &str) -> String {
    #[derive(PartialEq)]
    enum In {
        Code,
        Line,
        Block,
        String,
    }
    let mut state = In::Code;
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let next = chars.peek().copied();
        match state {
            In::Code if c == '/' && next == Some('/') => state = In::Line,
            In::Code if c == '/' && next == Some('*') => {
                state = In::Block;
                chars.next();
                out.push(' ');
            }
            In::Code if c == '"' => state = In::String,
            In::String if c == '\\' && next.is_some() => {
                out.push(c);
                out.extend(chars.next());
                continue;
            }
            In::String if c == '"' || c == '\n' => state = In::Code,
            In::Line if c == '\n' => state = In::Code,
            In::Block if c == '*' && next == Some('/') => {
                state = In::Code;
                chars.next();
                out.push_str("  ");
                continue;
            }
            _ => {}
        }
        if c == '\n' || matches!(state, In::Code | In::String) {
            out.push(c);
        } else {
            // As many bytes as the comment had, so that offsets agree.
            out.extend(std::iter::repeat_n(' ', c.len_utf8()));
        }
    }
    out
}
