//! The shape of a module as the parser finds it, before names mean anything.

/// A literal, kept with the type it was written in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Literal {
    Integer(i128),
    Single(u32),
    Double(u64),
}

/// An operand as written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Operand<'a> {
    Name(&'a str),
    /// `!%p`
    Not(&'a str),
    Literal(Literal),
    /// `[base+offset]`; a missing base is a literal address.
    Address {
        base: Option<&'a str>,
        offset: i64,
    },
    /// `name+offset` outside brackets.
    Offset(&'a str, i64),
    Vector(Vec<Operand<'a>>),
    /// `d|p`
    Pair(Box<Operand<'a>>, Box<Operand<'a>>),
    /// `(a, b)` of a call.
    List(Vec<Operand<'a>>),
}

/// A variable declaration of any state space.
#[derive(Debug, Clone)]
pub(crate) struct Declaration<'a> {
    pub(crate) space: &'a str,
    pub(crate) name: &'a str,
    pub(crate) align: u32,
    /// Bytes of one element.
    pub(crate) element: u32,
    /// Elements; `None` for `[]`.
    pub(crate) count: Option<u64>,
    pub(crate) initial: Vec<Initial<'a>>,
    pub(crate) line: u32,
}

/// One element of an initialiser.
#[derive(Debug, Clone)]
pub(crate) enum Initial<'a> {
    Literal(Literal),
    Address(&'a str, i64),
}

/// A statement of a function body.
#[derive(Debug, Clone)]
pub(crate) enum Statement<'a> {
    Open,
    Close,
    Label(&'a str),
    /// Line, and names with a count when written `%r<5>`.
    Registers(u32, Vec<(&'a str, Option<u32>)>),
    Variable(Declaration<'a>),
    /// File index and line.
    Location(u32, u32),
    BranchTargets(&'a str, Vec<&'a str>),
    Instruction(Instruction<'a>),
}

/// An instruction as written.
#[derive(Debug, Clone)]
pub(crate) struct Instruction<'a> {
    pub(crate) guard: Option<(&'a str, bool)>,
    pub(crate) opcode: &'a str,
    pub(crate) operands: Vec<Operand<'a>>,
    pub(crate) line: u32,
}

/// An entry or a device function.
#[derive(Debug, Clone)]
pub(crate) struct Function<'a> {
    pub(crate) name: &'a str,
    pub(crate) is_entry: bool,
    pub(crate) results: Vec<Declaration<'a>>,
    pub(crate) params: Vec<Declaration<'a>>,
    pub(crate) max_threads: Option<[u32; 3]>,
    pub(crate) required_block: Option<[u32; 3]>,
    /// `None` for a declaration.
    pub(crate) body: Option<Vec<Statement<'a>>>,
    pub(crate) line: u32,
}

/// A whole file.
#[derive(Debug, Default)]
pub(crate) struct Source<'a> {
    pub(crate) target: &'a str,
    pub(crate) functions: Vec<Function<'a>>,
    pub(crate) variables: Vec<Declaration<'a>>,
    pub(crate) files: Vec<(u32, &'a str)>,
}
