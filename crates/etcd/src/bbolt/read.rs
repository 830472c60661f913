//! Reading: every number of the file is checked before it is used, and no page is visited twice.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::{
    BRANCH, BUCKET, ELEMENT, LEAF, MAGIC, META_BYTES, META_SUMMED, PAGE_HEADER, VERSION, fnv,
};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("not a bbolt database, or a damaged one: {0}")]
    Damaged(&'static str),
}

/// An open file.
pub struct Database {
    file: File,
    page_size: u64,
    root: u64,
    /// Pages from here on are not in use.
    pages: u64,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..at + 2)?
        .try_into()
        .ok()
        .map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..at + 4)?
        .try_into()
        .ok()
        .map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes
        .get(at..at + 8)?
        .try_into()
        .ok()
        .map(u64::from_le_bytes)
}

/// Takes one entry.
type Each<'a, E> = dyn FnMut(&[u8], &[u8]) -> Result<(), E> + 'a;

/// Page sizes that exist.
const PAGE_SIZES: std::ops::RangeInclusive<u64> = 512..=65536;

struct Meta {
    page_size: u64,
    root: u64,
    pages: u64,
    transaction: u64,
}

impl Meta {
    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..META_BYTES)?;
        let page_size = u64::from(u32_at(bytes, 8)?);
        let valid = u32_at(bytes, 0)? == MAGIC
            && u32_at(bytes, 4)? == VERSION
            && u64_at(bytes, META_SUMMED)? == fnv(&bytes[..META_SUMMED])
            && PAGE_SIZES.contains(&page_size)
            && page_size.is_power_of_two();
        valid.then_some(Self {
            page_size,
            root: u64_at(bytes, 16)?,
            pages: u64_at(bytes, 40)?,
            transaction: u64_at(bytes, 48)?,
        })
    }
}

/// One page with its overflow, or an inline bucket's.
struct Page(Vec<u8>);

struct Element<'a> {
    flags: u32,
    key: &'a [u8],
    value: &'a [u8],
}

impl Page {
    fn kind(&self) -> Option<u16> {
        u16_at(&self.0, 8)
    }

    fn count(&self) -> usize {
        u16_at(&self.0, 10).map_or(0, usize::from)
    }

    fn bytes(&self, element: usize, pos: u32, skip: usize, size: usize) -> Option<&[u8]> {
        let start = PAGE_HEADER
            .checked_add(element.checked_mul(ELEMENT)?)?
            .checked_add(usize::try_from(pos).ok()?)?
            .checked_add(skip)?;
        self.0.get(start..start.checked_add(size)?)
    }

    fn leaf(&self, i: usize) -> Option<Element<'_>> {
        let at = PAGE_HEADER + i * ELEMENT;
        let pos = u32_at(&self.0, at + 4)?;
        let size = |at| u32_at(&self.0, at).and_then(|n| usize::try_from(n).ok());
        let (key, value) = (size(at + 8)?, size(at + 12)?);
        Some(Element {
            flags: u32_at(&self.0, at)?,
            key: self.bytes(i, pos, 0, key)?,
            value: self.bytes(i, pos, key, value)?,
        })
    }

    fn child(&self, i: usize) -> Option<u64> {
        u64_at(&self.0, PAGE_HEADER + i * ELEMENT + 8)
    }
}

const BAD_PAGE: Error = Error::Damaged("a page is not valid");

impl Database {
    /// Opens a file, whose content beyond the database's pages does not matter.
    ///
    /// # Errors
    /// When the file cannot be read or has no valid meta page.
    pub fn open(file: File) -> Result<Self, Error> {
        let length = file.metadata()?.len();
        let mut head = vec![0; 2 * 65536];
        let read = read_up_to(&file, &mut head)?;
        head.truncate(read);
        let first = head.get(PAGE_HEADER..).and_then(Meta::decode);
        // The second page is where the first says, or where any page size puts it.
        let sizes: Vec<u64> = match &first {
            Some(meta) => vec![meta.page_size],
            None => (9..=16).map(|shift| 1 << shift).collect(),
        };
        let second = sizes.into_iter().find_map(|size| {
            let at = usize::try_from(size).ok()? + PAGE_HEADER;
            Meta::decode(head.get(at..)?).filter(|meta| meta.page_size == size)
        });
        let meta = [first, second]
            .into_iter()
            .flatten()
            .max_by_key(|meta| meta.transaction)
            .ok_or(Error::Damaged("it has no valid meta page"))?;
        if meta.pages > length / meta.page_size {
            return Err(Error::Damaged("its end is missing"));
        }
        Ok(Self {
            file,
            page_size: meta.page_size,
            root: meta.root,
            pages: meta.pages,
        })
    }

    /// Bytes of the database.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.pages * self.page_size
    }

    /// Names of the buckets, in order.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
    pub fn buckets(&self) -> Result<Vec<Vec<u8>>, Error> {
        let mut names = Vec::new();
        self.walk(self.root, &mut |element: Element<'_>| {
            if element.flags & BUCKET != 0 {
                names.push(element.key.to_vec());
            }
            Ok::<_, Error>(())
        })?;
        Ok(names)
    }

    /// Gives all entries of a bucket, in order; none if there is no such bucket.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged, or what `each` returned.
    pub fn each<E: From<Error>>(&self, bucket: &[u8], each: &mut Each<'_, E>) -> Result<(), E> {
        let mut found = None;
        self.walk(self.root, &mut |element: Element<'_>| {
            if element.flags & BUCKET != 0 && element.key == bucket {
                found = Some(element.value.to_vec());
            }
            Ok::<_, Error>(())
        })?;
        let Some(header) = found else { return Ok(()) };
        let mut entry = |element: Element<'_>| {
            if element.flags & BUCKET == 0 {
                each(element.key, element.value)?;
            }
            Ok(())
        };
        match u64_at(&header, 0) {
            // A small bucket is stored in place of its header.
            Some(0) => leaf(&Page(header[16.min(header.len())..].to_vec()), &mut entry),
            Some(root) => self.walk(root, &mut entry),
            None => Err(BAD_PAGE.into()),
        }
    }

    fn page(&self, id: u64) -> Result<Page, Error> {
        if id >= self.pages {
            return Err(BAD_PAGE);
        }
        let mut header = [0; PAGE_HEADER];
        self.file.read_exact_at(&mut header, id * self.page_size)?;
        let overflow = u64::from(u32_at(&header, 12).unwrap_or(0));
        if u64_at(&header, 0) != Some(id) || overflow >= self.pages - id {
            return Err(BAD_PAGE);
        }
        let size = usize::try_from((overflow + 1) * self.page_size).map_err(|_| BAD_PAGE)?;
        let mut bytes = vec![0; size];
        self.file.read_exact_at(&mut bytes, id * self.page_size)?;
        Ok(Page(bytes))
    }

    /// Gives the elements of all leaves below a page, in order.
    fn walk<E: From<Error>>(
        &self,
        root: u64,
        each: &mut dyn FnMut(Element<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut waiting = vec![root];
        // A tree has no more pages than the file: more visits mean a circle.
        let mut left = self.pages;
        while let Some(id) = waiting.pop() {
            left = left.checked_sub(1).ok_or(BAD_PAGE)?;
            let page = self.page(id)?;
            match page.kind() {
                Some(LEAF) => leaf(&page, each)?,
                Some(BRANCH) => {
                    for i in (0..page.count()).rev() {
                        waiting.push(page.child(i).ok_or(BAD_PAGE)?);
                    }
                    if waiting.len() as u64 > self.pages {
                        return Err(BAD_PAGE.into());
                    }
                }
                _ => return Err(BAD_PAGE.into()),
            }
        }
        Ok(())
    }
}

fn leaf<E: From<Error>>(
    page: &Page,
    each: &mut dyn FnMut(Element<'_>) -> Result<(), E>,
) -> Result<(), E> {
    for i in 0..page.count() {
        each(page.leaf(i).ok_or(BAD_PAGE)?)?;
    }
    Ok(())
}

fn read_up_to(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read_at(&mut buffer[read..], read as u64)? {
            0 => break,
            n => read += n,
        }
    }
    Ok(read)
}
