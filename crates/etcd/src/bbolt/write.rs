//! Writing: the entries of each bucket are gone through twice. The first time only the number of pages is found, which
//! the pages in front must name; the second time they are written, from front to back, so that a file can be sent while
//! it is made.

use super::{
    BRANCH, BUCKET, ELEMENT, FREELIST, LEAF, MAGIC, META, META_BYTES, META_SUMMED, PAGE_HEADER,
    VERSION, fnv,
};

const PAGE_SIZE: usize = 4096;

/// Pages in front of the buckets: two meta pages and the list of free pages, which is empty.
const FREELIST_PAGE: u64 = 2;
const FIRST_PAGE: u64 = 3;

/// A page's index counts with 16 bits, of which the largest number has a meaning of its own.
const MOST_ELEMENTS: usize = 0xFFFE;

/// Takes one entry.
pub type Each<'a, E> = dyn FnMut(Vec<u8>, Vec<u8>) -> Result<(), E> + 'a;

/// A bucket to write. `entries` gives its entries in order of their keys, the same every time it is called.
pub struct Bucket<'a, E> {
    pub name: Vec<u8>,
    #[allow(clippy::type_complexity)]
    pub entries: Box<dyn Fn(&mut Each<'_, E>) -> Result<(), E> + 'a>,
}

/// Takes a page, and how many bytes follow it.
type Output<'a, E> = dyn FnMut(&[u8], u64) -> Result<(), E> + 'a;

/// Writes a database of buckets, which are in order of their names.
///
/// # Errors
/// What a bucket or `output` returned.
pub fn write<E>(buckets: &[Bucket<'_, E>], output: &mut Output<'_, E>) -> Result<(), E> {
    let mut roots = Vec::with_capacity(buckets.len());
    let mut next = FIRST_PAGE;
    for bucket in buckets {
        let mut tree = Tree::new(next, None);
        (bucket.entries)(&mut |key, value| tree.add(key, value))?;
        let written = tree.finish()?;
        next = written.next;
        roots.push(written.root);
    }
    let mut index = Tree::<E>::new(next, None);
    let header = |root: u64| [root.to_le_bytes(), [0; 8]].concat();
    for (bucket, root) in buckets.iter().zip(&roots) {
        index.add_flagged(BUCKET, bucket.name.clone(), header(*root))?;
    }
    let index = index.finish()?;
    let mut head = Pages {
        next: 0,
        output: Some(Remaining {
            pages: index.next,
            output,
        }),
    };
    for transaction in [0, 1] {
        head.meta(transaction, &index)?;
    }
    head.page(FREELIST, 0, &[], PAGE_SIZE)?;
    for bucket in buckets {
        let mut tree = Tree::new(head.next, head.output.take());
        (bucket.entries)(&mut |key, value| tree.add(key, value))?;
        let written = tree.finish()?;
        head.next = written.next;
        head.output = written.output;
    }
    let mut index = Tree::new(head.next, head.output.take());
    for (bucket, root) in buckets.iter().zip(&roots) {
        index.add_flagged(BUCKET, bucket.name.clone(), header(*root))?;
    }
    index.finish().map(drop)
}

/// Where pages go, and how many are still to come.
struct Remaining<'o, 'a, E> {
    pages: u64,
    output: &'o mut Output<'a, E>,
}

/// Pages one after the other; without an output they are only counted.
struct Pages<'o, 'a, E> {
    next: u64,
    output: Option<Remaining<'o, 'a, E>>,
}

impl<E> Pages<'_, '_, E> {
    /// Writes a page with what follows its header, filled up to a multiple of the page size.
    fn page(&mut self, kind: u16, count: usize, content: &[u8], size: usize) -> Result<u64, E> {
        let id = self.next;
        let pages = size.div_ceil(PAGE_SIZE).max(1);
        self.next += pages as u64;
        if let Some(output) = &mut self.output {
            let mut bytes = Vec::with_capacity(pages * PAGE_SIZE);
            bytes.extend_from_slice(&id.to_le_bytes());
            bytes.extend_from_slice(&kind.to_le_bytes());
            bytes.extend_from_slice(&u16::try_from(count).unwrap_or(u16::MAX).to_le_bytes());
            let overflow = u32::try_from(pages - 1).unwrap_or(u32::MAX);
            bytes.extend_from_slice(&overflow.to_le_bytes());
            bytes.extend_from_slice(content);
            bytes.resize(pages * PAGE_SIZE, 0);
            output.pages -= pages as u64;
            (output.output)(&bytes, output.pages * PAGE_SIZE as u64)?;
        }
        Ok(id)
    }

    fn meta(&mut self, transaction: u64, index: &Written<'_, '_, E>) -> Result<u64, E> {
        let mut meta = Vec::with_capacity(META_BYTES);
        for number in [MAGIC, VERSION, PAGE_SIZE as u32, 0] {
            meta.extend_from_slice(&number.to_le_bytes());
        }
        for number in [index.root, 0, FREELIST_PAGE, index.next, transaction] {
            meta.extend_from_slice(&number.to_le_bytes());
        }
        let checksum = fnv(&meta[..META_SUMMED]);
        meta.extend_from_slice(&checksum.to_le_bytes());
        self.page(META, 0, &meta, PAGE_SIZE)
    }
}

/// One element of a page: what its index says beside places and sizes.
struct Element {
    /// Flags of a leaf's entry, or the page that a branch's leads to.
    number: u64,
    key: Vec<u8>,
    value: Vec<u8>,
}

/// A B+tree that is written from its leaves up.
struct Tree<'o, 'a, E> {
    pages: Pages<'o, 'a, E>,
    leaf: Level,
    /// First key and page of everything written of the level below.
    written: Vec<Element>,
}

/// A tree all of whose pages are written.
struct Written<'o, 'a, E> {
    root: u64,
    /// The page after the root's, which has more than one when its only entry is large.
    next: u64,
    output: Option<Remaining<'o, 'a, E>>,
}

#[derive(Default)]
struct Level {
    elements: Vec<Element>,
    /// Of the page that they make.
    size: usize,
}

impl Level {
    fn takes(&self, key: usize, value: usize) -> bool {
        let size = self.size + ELEMENT + key + value;
        self.elements.is_empty() || (size <= PAGE_SIZE && self.elements.len() < MOST_ELEMENTS)
    }

    fn push(&mut self, element: Element) {
        if self.elements.is_empty() {
            self.size = PAGE_HEADER;
        }
        self.size += ELEMENT + element.key.len() + element.value.len();
        self.elements.push(element);
    }
}

impl<'o, 'a, E> Tree<'o, 'a, E> {
    fn new(next: u64, output: Option<Remaining<'o, 'a, E>>) -> Self {
        Self {
            pages: Pages { next, output },
            leaf: Level::default(),
            written: Vec::new(),
        }
    }

    fn add(&mut self, key: Vec<u8>, value: Vec<u8>) -> Result<(), E> {
        self.add_flagged(0, key, value)
    }

    fn add_flagged(&mut self, flags: u32, key: Vec<u8>, value: Vec<u8>) -> Result<(), E> {
        if !self.leaf.takes(key.len(), value.len()) {
            let full = std::mem::take(&mut self.leaf);
            self.flush(LEAF, full)?;
        }
        let number = flags.into();
        self.leaf.push(Element { number, key, value });
        Ok(())
    }

    fn flush(&mut self, kind: u16, level: Level) -> Result<(), E> {
        let count = level.elements.len();
        let mut content = Vec::new();
        if self.pages.output.is_some() {
            content.reserve(level.size);
            let mut data = count * ELEMENT;
            for (i, element) in level.elements.iter().enumerate() {
                // Places count from the element's own.
                let size = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
                let place = size(data - i * ELEMENT);
                if kind == LEAF {
                    let flags = u32::try_from(element.number).unwrap_or_default();
                    content.extend_from_slice(&flags.to_le_bytes());
                    content.extend_from_slice(&place);
                    content.extend_from_slice(&size(element.key.len()));
                    content.extend_from_slice(&size(element.value.len()));
                } else {
                    content.extend_from_slice(&place);
                    content.extend_from_slice(&size(element.key.len()));
                    content.extend_from_slice(&element.number.to_le_bytes());
                }
                data += element.key.len() + element.value.len();
            }
            for element in &level.elements {
                content.extend_from_slice(&element.key);
                content.extend_from_slice(&element.value);
            }
        }
        let number = self.pages.page(kind, count, &content, level.size)?;
        let key = level.elements.into_iter().next().map(|e| e.key);
        self.written.push(Element {
            number,
            key: key.unwrap_or_default(),
            value: Vec::new(),
        });
        Ok(())
    }

    fn finish(mut self) -> Result<Written<'o, 'a, E>, E> {
        let rest = std::mem::take(&mut self.leaf);
        if !rest.elements.is_empty() || self.written.is_empty() {
            self.flush(LEAF, rest)?;
        }
        while self.written.len() > 1 {
            let mut level = Level::default();
            for element in std::mem::take(&mut self.written) {
                if !level.takes(element.key.len(), 0) {
                    let full = std::mem::take(&mut level);
                    self.flush(BRANCH, full)?;
                }
                level.push(element);
            }
            self.flush(BRANCH, level)?;
        }
        let root = self.written.first().map_or(0, |root| root.number);
        Ok(Written {
            root,
            next: self.pages.next,
            output: self.pages.output,
        })
    }
}
