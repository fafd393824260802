//! Pickles, read and not run: the objects that a PyTorch checkpoint is made of, as a table of nodes.
//!
//! A pickle is a program for a small stack machine that can call any function of Python. Here a
//! fixed set of its instructions builds plain values, only functions and classes of the caller's
//! list may be named, and a call is kept as a node, for the caller to read or refuse. Anything
//! else is an error that names it.
//!
//! What it knows: protocols 2 to 5, as far as `torch.save` uses them. What it must not know: what
//! a call means.

use std::collections::HashMap;

use crate::Error;
use crate::bytes::Cursor;

/// The number of a node.
pub(crate) type Id = u32;

/// A value of a pickle. Parts are nodes of their own, so that a value named twice is held once.
#[derive(Debug)]
pub(crate) enum Node<'a, G> {
    None,
    Bool,
    Int(i64),
    /// A number that no tensor is made of; its value is not kept.
    Float,
    Text(&'a str),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A function or class of the caller's list.
    Global(G),
    /// A function or class with its arguments; nothing was called.
    Call(G, Id),
    /// What lies outside the pickle, by its tuple.
    Persistent(Id),
}

/// The functions and classes that a pickle may name: (module, name, what it is here).
pub(crate) type Globals<G> = [(&'static str, &'static str, G)];

/// A pickle that was read.
pub(crate) struct Pickle<'a, G> {
    nodes: Vec<Node<'a, G>>,
    /// The value of the whole.
    pub(crate) root: Id,
}

impl<'a, G> Pickle<'a, G> {
    pub(crate) fn node(&self, id: Id) -> &Node<'a, G> {
        &self.nodes[id as usize]
    }
}

/// The instructions that are known; the names are those of Python's `pickletools`.
mod op {
    pub(super) const MARK: u8 = b'(';
    pub(super) const EMPTY_TUPLE: u8 = b')';
    pub(super) const STOP: u8 = b'.';
    pub(super) const BINFLOAT: u8 = b'G';
    pub(super) const BININT: u8 = b'J';
    pub(super) const BININT1: u8 = b'K';
    pub(super) const BININT2: u8 = b'M';
    pub(super) const NONE: u8 = b'N';
    pub(super) const BINPERSID: u8 = b'Q';
    pub(super) const REDUCE: u8 = b'R';
    pub(super) const BINUNICODE: u8 = b'X';
    pub(super) const EMPTY_LIST: u8 = b']';
    pub(super) const APPEND: u8 = b'a';
    pub(super) const BUILD: u8 = b'b';
    pub(super) const GLOBAL: u8 = b'c';
    pub(super) const APPENDS: u8 = b'e';
    pub(super) const BINGET: u8 = b'h';
    pub(super) const LONG_BINGET: u8 = b'j';
    pub(super) const BINPUT: u8 = b'q';
    pub(super) const LONG_BINPUT: u8 = b'r';
    pub(super) const SETITEM: u8 = b's';
    pub(super) const TUPLE: u8 = b't';
    pub(super) const SETITEMS: u8 = b'u';
    pub(super) const EMPTY_DICT: u8 = b'}';
    pub(super) const PROTO: u8 = 0x80;
    pub(super) const TUPLE1: u8 = 0x85;
    pub(super) const TUPLE3: u8 = 0x87;
    pub(super) const NEWTRUE: u8 = 0x88;
    pub(super) const NEWFALSE: u8 = 0x89;
    pub(super) const LONG1: u8 = 0x8a;
    pub(super) const SHORT_BINUNICODE: u8 = 0x8c;
    pub(super) const BINUNICODE8: u8 = 0x8d;
    pub(super) const STACK_GLOBAL: u8 = 0x93;
    pub(super) const MEMOIZE: u8 = 0x94;
    pub(super) const FRAME: u8 = 0x95;
}

/// Reads a pickle from `cursor` to its end. `dict` is the class whose empty calls are dictionaries.
///
/// # Errors
/// An instruction or a name that is not known, or a program that makes no sense.
pub(crate) fn read<'a, G: Copy + PartialEq>(
    cursor: Cursor<'a>,
    globals: &Globals<G>,
    dict: G,
) -> Result<Pickle<'a, G>, Error> {
    let mut machine = Machine {
        cursor,
        globals,
        dict,
        // Shared, for they are many.
        nodes: vec![Node::None, Node::Bool, Node::Bool],
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        at: 0,
    };
    loop {
        machine.at = machine.cursor.at();
        let [op] = machine.cursor.array("an instruction")?;
        if op == op::STOP {
            let root = machine.pop()?;
            let nodes = machine.nodes;
            return Ok(Pickle { nodes, root });
        }
        machine.step(op)?;
    }
}

struct Machine<'a, 'g, G> {
    cursor: Cursor<'a>,
    globals: &'g Globals<G>,
    dict: G,
    nodes: Vec<Node<'a, G>>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// Where the current instruction begins.
    at: usize,
}

impl<'a, G: Copy + PartialEq> Machine<'a, '_, G> {
    fn wrong(&self, what: impl std::fmt::Display) -> Error {
        self.cursor.wrong(self.at, format_args!("pickle: {what}"))
    }

    fn push(&mut self, node: Node<'a, G>) -> Result<(), Error> {
        let id = u32::try_from(self.nodes.len()).map_err(|_| self.wrong("too many values"))?;
        self.nodes.push(node);
        self.stack.push(id);
        Ok(())
    }

    /// Takes the topmost value, which must lie above the last mark.
    fn pop(&mut self) -> Result<Id, Error> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.pop() {
            Some(id) if self.stack.len() >= floor => Ok(id),
            _ => Err(self.wrong("a value is wanted where there is none")),
        }
    }

    /// Takes the values above the last mark, and the mark.
    fn pop_marked(&mut self) -> Result<Vec<Id>, Error> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => Err(self.wrong("a mark is wanted where there is none")),
        }
    }

    fn step(&mut self, op: u8) -> Result<(), Error> {
        match op {
            op::PROTO => match self.cursor.array("the protocol")? {
                [2..=5] => Ok(()),
                [n] => Err(self.wrong(format_args!("protocol {n}; 2 to 5 are known"))),
            },
            op::FRAME => self.cursor.count(1, "bytes of a frame").map(drop),
            op::MARK => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            op::NONE | op::NEWTRUE | op::NEWFALSE => {
                self.stack.push(
                    [op::NONE, op::NEWTRUE, op::NEWFALSE]
                        .iter()
                        .position(|o| *o == op)
                        .unwrap_or(0) as Id,
                );
                Ok(())
            }
            op::EMPTY_TUPLE => self.push(Node::Tuple(Vec::new())),
            op::EMPTY_LIST => self.push(Node::List(Vec::new())),
            op::EMPTY_DICT => self.push(Node::Dict(Vec::new())),
            op::BININT | op::BININT1 | op::BININT2 | op::LONG1 | op::BINFLOAT => self.number(op),
            op::BINUNICODE | op::SHORT_BINUNICODE | op::BINUNICODE8 => self.text(op),
            op::TUPLE => {
                let parts = self.pop_marked()?;
                self.push(Node::Tuple(parts))
            }
            op::TUPLE1..=op::TUPLE3 => {
                let mut parts = Vec::with_capacity(3);
                for _ in op::TUPLE1..=op {
                    parts.push(self.pop()?);
                }
                parts.reverse();
                self.push(Node::Tuple(parts))
            }
            op::BINPUT | op::LONG_BINPUT | op::MEMOIZE | op::BINGET | op::LONG_BINGET => {
                self.memo(op)
            }
            op::GLOBAL | op::STACK_GLOBAL => self.global(op),
            op::BINPERSID => {
                let id = self.pop()?;
                self.push(Node::Persistent(id))
            }
            op::REDUCE => self.reduce(),
            op::BUILD => self.build(),
            op::SETITEM | op::SETITEMS | op::APPEND | op::APPENDS => self.fill(op),
            other => Err(self.wrong(format_args!(
                "instruction 0x{other:02x} is not one that a checkpoint of weights needs"
            ))),
        }
    }

    fn number(&mut self, op: u8) -> Result<(), Error> {
        let what = "a number";
        let n = match op {
            op::BININT => i32::from_le_bytes(self.cursor.array(what)?).into(),
            op::BININT1 => u8::from_le_bytes(self.cursor.array(what)?).into(),
            op::BININT2 => self.cursor.u16(what)?.into(),
            op::BINFLOAT => {
                self.cursor.take(8, what)?;
                return self.push(Node::Float);
            }
            _ => {
                let [n] = self.cursor.array(what)?;
                let bytes = self.cursor.take(n.into(), what)?;
                if n > 8 {
                    return Err(self.wrong(format_args!("a number of {n} bytes")));
                }
                // Little-endian two's complement: the last byte has the sign.
                let sign = bytes.last().is_some_and(|b| b & 0x80 != 0);
                let mut all = [if sign { 0xff } else { 0 }; 8];
                all[..bytes.len()].copy_from_slice(bytes);
                i64::from_le_bytes(all)
            }
        };
        self.push(Node::Int(n))
    }

    fn text(&mut self, op: u8) -> Result<(), Error> {
        let what = "a text";
        let n = match op {
            op::SHORT_BINUNICODE => u8::from_le_bytes(self.cursor.array(what)?).into(),
            op::BINUNICODE => self.cursor.u32(what)?.into(),
            _ => self.cursor.u64(what)?,
        };
        let n = usize::try_from(n).unwrap_or(usize::MAX);
        match std::str::from_utf8(self.cursor.take(n, what)?) {
            Ok(text) => self.push(Node::Text(text)),
            Err(_) => Err(self.wrong("a text is not valid UTF-8")),
        }
    }

    fn memo(&mut self, op: u8) -> Result<(), Error> {
        let what = "a place of the memo";
        let place = match op {
            op::BINPUT | op::BINGET => u8::from_le_bytes(self.cursor.array(what)?).into(),
            op::MEMOIZE => self.memo.len() as u32,
            _ => self.cursor.u32(what)?,
        };
        if matches!(op, op::BINGET | op::LONG_BINGET) {
            let found = self.memo.get(&place).copied();
            let id = found.ok_or_else(|| self.wrong(format_args!("memo {place} is empty")))?;
            self.stack.push(id);
            return Ok(());
        }
        let id = self.pop()?;
        self.stack.push(id);
        self.memo.insert(place, id);
        Ok(())
    }

    fn line(&mut self) -> Result<&'a str, Error> {
        let rest = &self.cursor.all()[self.cursor.at()..];
        let end = rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len());
        let line = self.cursor.take(end + 1, "a name")?;
        std::str::from_utf8(&line[..end]).map_err(|_| self.wrong("a name is not valid UTF-8"))
    }

    fn global(&mut self, op: u8) -> Result<(), Error> {
        let (module, name) = if op == op::GLOBAL {
            (self.line()?, self.line()?)
        } else {
            let (name, module) = (self.pop()?, self.pop()?);
            match (&self.nodes[module as usize], &self.nodes[name as usize]) {
                (Node::Text(module), Node::Text(name)) => (*module, *name),
                _ => return Err(self.wrong("a name that is no text")),
            }
        };
        let found = self.globals.iter().find(|g| (g.0, g.1) == (module, name));
        match found {
            Some((.., global)) => self.push(Node::Global(*global)),
            None => {
                let what = format!(
                    "it names {:?}, which a checkpoint of weights does not need; nothing of it is run",
                    shown(module, name)
                );
                Err(self.wrong(what))
            }
        }
    }

    /// A call is written down, but for that of the dictionary.
    fn reduce(&mut self) -> Result<(), Error> {
        let (args, function) = (self.pop()?, self.pop()?);
        let Node::Global(global) = self.nodes[function as usize] else {
            return Err(self.wrong("a call of what is no function"));
        };
        let Node::Tuple(list) = &self.nodes[args as usize] else {
            return Err(self.wrong("arguments that are no tuple"));
        };
        if global != self.dict {
            return self.push(Node::Call(global, args));
        }
        if !list.is_empty() {
            return Err(self.wrong("a dictionary made with arguments"));
        }
        self.push(Node::Dict(Vec::new()))
    }

    /// Attributes of a dictionary (the versions of modules) are dropped; other objects have none.
    fn build(&mut self) -> Result<(), Error> {
        self.pop()?;
        let object = self.pop()?;
        match self.nodes[object as usize] {
            Node::Dict(_) => {
                self.stack.push(object);
                Ok(())
            }
            _ => Err(self.wrong("attributes for what is no dictionary")),
        }
    }

    fn fill(&mut self, op: u8) -> Result<(), Error> {
        let items = match op {
            op::SETITEM | op::APPEND => {
                let mut items = vec![self.pop()?];
                if op == op::SETITEM {
                    items.insert(0, self.pop()?);
                }
                items
            }
            _ => self.pop_marked()?,
        };
        let object = self.pop()?;
        self.stack.push(object);
        let fits = match (&mut self.nodes[object as usize], op) {
            (Node::Dict(dict), op::SETITEM | op::SETITEMS) if items.len().is_multiple_of(2) => {
                dict.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
                true
            }
            (Node::List(list), op::APPEND | op::APPENDS) => {
                list.extend(items);
                true
            }
            _ => false,
        };
        match fits {
            true => Ok(()),
            false => Err(self.wrong("items for what cannot hold them")),
        }
    }
}

/// A name for a message, cut to a length fit for one.
fn shown(module: &str, name: &str) -> String {
    format!("{module}.{name}").chars().take(120).collect()
}
