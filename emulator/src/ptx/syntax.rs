//! Tokens to statements.

use super::lexer::{Spanned, Token, lex};
use super::module::LoadError;
use super::tree::{
    Declaration, Function, Initial, Instruction, Literal, Operand, Source, Statement,
};

/// Parses the text.
pub(crate) fn parse(text: &str) -> Result<Source<'_>, LoadError> {
    let tokens = lex(text)?;
    Parser { text, tokens, at: 0, depth: 0 }.source()
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<Spanned<'a>>,
    at: usize,
    /// Nesting of braces in operands and initial values.
    depth: u32,
}

/// Deepest nesting of braces; real PTX needs two.
const MAX_NESTING: u32 = 16;
/// Largest alignment of a variable.
const MAX_ALIGN: u32 = 1 << 16;

type Parsed<T> = Result<T, LoadError>;

impl<'a> Parser<'a> {
    fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |spanned| spanned.line)
    }

    fn error<T>(&self, message: impl Into<String>) -> Parsed<T> {
        let line = self.line();
        let text = self.text.lines().nth(line as usize - 1).unwrap_or("").trim().to_owned();
        Err(LoadError { line, text, message: message.into() })
    }

    fn peek(&self) -> Option<&Token<'a>> {
        self.tokens.get(self.at).map(|spanned| &spanned.token)
    }

    fn word(&mut self) -> Parsed<&'a str> {
        match self.peek() {
            Some(&Token::Word(word)) => {
                self.at += 1;
                Ok(word)
            }
            _ => self.error("expected a name"),
        }
    }

    fn accept(&mut self, punct: u8) -> bool {
        let found = self.peek() == Some(&Token::Punct(punct));
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, punct: u8) -> Parsed<()> {
        if self.accept(punct) {
            return Ok(());
        }
        self.error(format!("expected `{}`", char::from(punct)))
    }

    fn integer(&mut self) -> Parsed<i128> {
        let negative = self.accept(b'-');
        match self.peek() {
            Some(&Token::Integer(value)) => {
                self.at += 1;
                Ok(if negative { -value } else { value })
            }
            _ => self.error("expected an integer"),
        }
    }

    fn unsigned(&mut self) -> Parsed<u32> {
        let value = self.integer()?;
        u32::try_from(value).or_else(|_| self.error("number out of range"))
    }

    fn triple(&mut self) -> Parsed<[u32; 3]> {
        let mut out = [1; 3];
        for (i, slot) in out.iter_mut().enumerate() {
            if i > 0 && !self.accept(b',') {
                break;
            }
            *slot = self.unsigned()?;
        }
        Ok(out)
    }

    fn skip_statement(&mut self) {
        while self.at < self.tokens.len() && !self.accept(b';') {
            self.at += 1;
        }
    }

    fn skip_line(&mut self) {
        let line = self.line();
        while self.tokens.get(self.at).is_some_and(|spanned| spanned.line == line) {
            self.at += 1;
        }
    }

    fn source(mut self) -> Parsed<Source<'a>> {
        let mut source = Source::default();
        while let Some(token) = self.peek() {
            let &Token::Word(word) = token else {
                if self.accept(b';') {
                    continue;
                }
                return self.error("expected a directive");
            };
            match word {
                ".version" | ".address_size" => self.skip_line(),
                ".target" => {
                    self.at += 1;
                    source.target = self.word()?;
                    self.skip_line();
                }
                ".file" => {
                    self.at += 1;
                    let index = self.unsigned()?;
                    if let Some(&Token::Text(name)) = self.peek() {
                        source.files.push((index, name));
                    }
                    self.skip_line();
                }
                ".section" => {
                    while self.at < self.tokens.len() && !self.accept(b'}') {
                        self.at += 1;
                    }
                }
                ".pragma" | ".alias" => self.skip_statement(),
                ".visible" | ".weak" | ".extern" | ".common" => self.at += 1,
                ".entry" | ".func" => {
                    let function = self.function(word == ".entry")?;
                    source.functions.push(function);
                }
                ".global" | ".const" | ".shared" => {
                    let declaration = self.statement_declaration()?;
                    source.variables.push(declaration);
                }
                _ => return self.error(format!("directive `{word}` is not modelled")),
            }
        }
        Ok(source)
    }

    fn function(&mut self, is_entry: bool) -> Parsed<Function<'a>> {
        let line = self.line();
        self.at += 1;
        if self.peek() == Some(&Token::Word(".attribute")) {
            return self.error("`.attribute` is not modelled");
        }
        let results = if self.accept(b'(') { self.params()? } else { Vec::new() };
        let name = self.word()?;
        let params = if self.accept(b'(') { self.params()? } else { Vec::new() };
        let mut function = Function {
            name,
            is_entry,
            results,
            params,
            max_threads: None,
            required_block: None,
            body: None,
            line,
        };
        loop {
            match self.peek() {
                Some(Token::Punct(b';')) => {
                    self.at += 1;
                    return Ok(function);
                }
                Some(Token::Punct(b'{')) => break,
                Some(&Token::Word(word)) => {
                    self.at += 1;
                    match word {
                        ".maxntid" => function.max_threads = Some(self.triple()?),
                        ".reqntid" => function.required_block = Some(self.triple()?),
                        ".minnctapersm" | ".maxnreg" | ".maxnctapersm" => {
                            self.unsigned()?;
                        }
                        ".noreturn" => {}
                        ".pragma" => self.skip_statement(),
                        _ => return self.error(format!("directive `{word}` is not modelled")),
                    }
                }
                _ => return self.error("expected a function body"),
            }
        }
        function.body = Some(self.body()?);
        Ok(function)
    }

    fn params(&mut self) -> Parsed<Vec<Declaration<'a>>> {
        let mut params = Vec::new();
        while !self.accept(b')') {
            self.accept(b',');
            if self.peek() == Some(&Token::Punct(b')')) {
                continue;
            }
            match self.peek() {
                Some(Token::Word(".param")) => params.push(self.declaration()?),
                _ => return self.error("expected a `.param`"),
            }
        }
        Ok(params)
    }

    /// One declaration up to, not including, `,` or `;`.
    fn declaration(&mut self) -> Parsed<Declaration<'a>> {
        let line = self.line();
        let space = self.word()?;
        let (mut align, mut element, mut vector) = (0u32, None, 1u32);
        let name = loop {
            let word = self.word()?;
            match word {
                ".align" => align = self.unsigned()?,
                ".ptr" | ".global" | ".shared" | ".const" | ".local" | ".managed" => {}
                ".v2" => vector = 2,
                ".v4" => vector = 4,
                _ if word.starts_with('.') => {
                    let Some(bytes) = type_bytes(&word[1..]) else {
                        return self.error(format!("type `{word}` is not modelled"));
                    };
                    element = Some(bytes);
                }
                _ => break word,
            }
        };
        let Some(element) = element.map(|bytes| bytes * vector) else {
            return self.error("a variable without a type");
        };
        let mut count = Some(1u64);
        while self.accept(b'[') {
            if self.accept(b']') {
                count = None;
                continue;
            }
            let extent = u64::try_from(self.integer()?).unwrap_or(u64::MAX);
            self.expect(b']')?;
            count = count.map(|n| n.saturating_mul(extent));
        }
        let mut initial = Vec::new();
        if self.accept(b'=') {
            self.initialiser(&mut initial)?;
        }
        if align > MAX_ALIGN {
            return self.error("the alignment is too large");
        }
        let align = align.max(element.min(16)).next_power_of_two();
        Ok(Declaration { space, name, align, element, count, initial, line })
    }

    fn initialiser(&mut self, out: &mut Vec<Initial<'a>>) -> Parsed<()> {
        if self.accept(b'{') {
            self.nest()?;
            while !self.accept(b'}') {
                self.initialiser(out)?;
                self.accept(b',');
            }
            self.depth -= 1;
            return Ok(());
        }
        let element = match self.peek() {
            Some(&Token::Word("generic")) => {
                self.at += 1;
                self.expect(b'(')?;
                let name = self.word()?;
                self.expect(b')')?;
                let offset = if self.accept(b'+') { self.integer()? } else { 0 };
                Initial::Address(name, offset as i64)
            }
            Some(&Token::Word(name)) => {
                self.at += 1;
                let offset = if self.accept(b'+') { self.integer()? } else { 0 };
                Initial::Address(name, offset as i64)
            }
            _ => Initial::Literal(self.literal()?),
        };
        out.push(element);
        Ok(())
    }

    fn statement_declaration(&mut self) -> Parsed<Declaration<'a>> {
        let declaration = self.declaration()?;
        if self.accept(b',') {
            return self.error("several variables in one declaration are not modelled");
        }
        self.expect(b';')?;
        Ok(declaration)
    }

    fn body(&mut self) -> Parsed<Vec<Statement<'a>>> {
        self.expect(b'{')?;
        let mut out = vec![Statement::Open];
        let mut depth = 1u32;
        while depth > 0 {
            let Some(token) = self.peek() else {
                return self.error("the function body is not closed");
            };
            match *token {
                Token::Punct(b'{') => {
                    self.at += 1;
                    depth += 1;
                    out.push(Statement::Open);
                }
                Token::Punct(b'}') => {
                    self.at += 1;
                    depth -= 1;
                    out.push(Statement::Close);
                }
                Token::Punct(b';') => self.at += 1,
                Token::Word(word) if word.starts_with('.') => self.directive(word, &mut out)?,
                Token::Word(word)
                    if self.tokens.get(self.at + 1).map(|next| &next.token)
                        == Some(&Token::Punct(b':')) =>
                {
                    self.at += 2;
                    match self.peek() {
                        Some(Token::Word(".branchtargets")) => {
                            self.at += 1;
                            let mut targets = vec![self.word()?];
                            while self.accept(b',') {
                                targets.push(self.word()?);
                            }
                            self.expect(b';')?;
                            out.push(Statement::BranchTargets(word, targets));
                        }
                        Some(Token::Word(".callprototype")) => {
                            return self.error("indirect calls are not modelled");
                        }
                        _ => out.push(Statement::Label(word)),
                    }
                }
                Token::Word(_) | Token::Punct(b'@') => {
                    let instruction = self.instruction()?;
                    out.push(Statement::Instruction(instruction));
                }
                _ => return self.error("expected a statement"),
            }
        }
        Ok(out)
    }

    fn directive(&mut self, word: &'a str, out: &mut Vec<Statement<'a>>) -> Parsed<()> {
        match word {
            ".loc" => {
                self.at += 1;
                let (file, line) = (self.unsigned()?, self.unsigned()?);
                self.skip_line();
                out.push(Statement::Location(file, line));
            }
            ".pragma" => self.skip_statement(),
            ".local" | ".shared" | ".param" | ".global" | ".const" => {
                let declaration = self.statement_declaration()?;
                out.push(Statement::Variable(declaration));
            }
            _ if word == ".reg" || word.starts_with(".reg.") => {
                let line = self.line();
                self.at += 1;
                // The type is in every instruction that uses the register, so it is not kept.
                if word == ".reg" {
                    self.word()?;
                }
                let mut names = Vec::new();
                loop {
                    let name = self.word()?;
                    let count = if self.accept(b'<') {
                        let count = self.unsigned()?;
                        self.expect(b'>')?;
                        Some(count)
                    } else {
                        None
                    };
                    names.push((name, count));
                    if !self.accept(b',') {
                        break;
                    }
                }
                self.expect(b';')?;
                out.push(Statement::Registers(line, names));
            }
            _ => return self.error(format!("directive `{word}` is not modelled")),
        }
        Ok(())
    }

    fn instruction(&mut self) -> Parsed<Instruction<'a>> {
        let mut line = self.line();
        let guard = if self.accept(b'@') {
            let negated = self.accept(b'!');
            Some((self.word()?, negated))
        } else {
            None
        };
        if guard.is_some() {
            line = self.line();
        }
        let opcode = self.word()?;
        let mut operands = Vec::new();
        while !self.accept(b';') {
            if self.at >= self.tokens.len() {
                return self.error("the instruction is not closed");
            }
            if !operands.is_empty() {
                self.expect(b',')?;
            }
            operands.push(self.operand()?);
        }
        Ok(Instruction { guard, opcode, operands, line })
    }

    fn literal(&mut self) -> Parsed<Literal> {
        let negative = self.accept(b'-');
        let literal = match self.peek() {
            Some(&Token::Integer(value)) => Literal::Integer(if negative { -value } else { value }),
            Some(&Token::Single(bits)) => {
                Literal::Single(if negative { bits ^ 0x8000_0000 } else { bits })
            }
            Some(&Token::Double(bits)) => {
                Literal::Double(if negative { bits ^ (1 << 63) } else { bits })
            }
            _ => return self.error("expected an operand"),
        };
        self.at += 1;
        Ok(literal)
    }

    fn offset(&mut self) -> Parsed<i64> {
        let mut total = 0i128;
        loop {
            let sign = self.peek() == Some(&Token::Punct(b'+'));
            let next = self.tokens.get(self.at + 1).map(|spanned| &spanned.token);
            if sign && matches!(next, Some(Token::Word(_))) {
                return self.error("an address with two registers is not modelled");
            }
            if self.accept(b'+') {
                total += self.integer()?;
            } else if self.accept(b'-') {
                total -= self.integer()?;
            } else {
                return i64::try_from(total).or_else(|_| self.error("offset out of range"));
            }
        }
    }

    fn nest(&mut self) -> Parsed<()> {
        self.depth += 1;
        if self.depth > MAX_NESTING {
            return self.error("braces are nested too deeply");
        }
        Ok(())
    }

    fn group(&mut self, close: u8) -> Parsed<Vec<Operand<'a>>> {
        self.nest()?;
        let mut out = Vec::new();
        while !self.accept(close) {
            if !out.is_empty() {
                self.expect(b',')?;
            }
            out.push(self.operand()?);
        }
        self.depth -= 1;
        Ok(out)
    }

    fn operand(&mut self) -> Parsed<Operand<'a>> {
        match self.peek() {
            Some(Token::Punct(b'[')) => {
                self.at += 1;
                let base = match self.peek() {
                    Some(&Token::Word(name)) => {
                        self.at += 1;
                        Some(name)
                    }
                    _ => None,
                };
                let start = if base.is_none() { self.integer()? } else { 0 };
                let offset = self.offset()?.wrapping_add(start as i64);
                if self.peek() != Some(&Token::Punct(b']')) {
                    return self.error("this form of address is not modelled");
                }
                self.expect(b']')?;
                Ok(Operand::Address { base, offset })
            }
            Some(Token::Punct(b'{')) => {
                self.at += 1;
                Ok(Operand::Vector(self.group(b'}')?))
            }
            Some(Token::Punct(b'(')) => {
                self.at += 1;
                Ok(Operand::List(self.group(b')')?))
            }
            Some(Token::Punct(b'!')) => {
                self.at += 1;
                Ok(Operand::Not(self.word()?))
            }
            Some(&Token::Word(name)) => {
                self.at += 1;
                if matches!(self.peek(), Some(Token::Punct(b'+' | b'-'))) {
                    return Ok(Operand::Offset(name, self.offset()?));
                }
                if self.accept(b'|') {
                    let second = self.word()?;
                    return Ok(Operand::Pair(
                        Box::new(Operand::Name(name)),
                        Box::new(Operand::Name(second)),
                    ));
                }
                Ok(Operand::Name(name))
            }
            _ => Ok(Operand::Literal(self.literal()?)),
        }
    }
}

/// Size of a fundamental type by name.
pub(crate) fn type_bytes(name: &str) -> Option<u32> {
    Some(match name {
        "b8" | "u8" | "s8" => 1,
        "b16" | "u16" | "s16" | "f16" | "bf16" => 2,
        "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" => 4,
        "b64" | "u64" | "s64" | "f64" => 8,
        "b128" => 16,
        "pred" => 1,
        _ => return None,
    })
}
