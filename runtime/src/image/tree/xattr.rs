//! Extended attributes, each value and each combination of them kept once.

use std::collections::BTreeMap;
use std::rc::Rc;

/// The name, with its namespace, and the value.
pub(crate) type Xattr = (Vec<u8>, Vec<u8>);

/// Names a combination of attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct XattrSet(u32);

impl XattrSet {
    /// No attributes.
    pub(crate) const NONE: Self = Self(0);
}

/// All attributes of a tree.
#[derive(Debug)]
pub(crate) struct Xattrs {
    attributes: Vec<Rc<Xattr>>,
    attribute_ids: BTreeMap<Rc<Xattr>, u32>,
    sets: Vec<Rc<[u32]>>,
    set_ids: BTreeMap<Rc<[u32]>, XattrSet>,
}

impl Xattrs {
    pub(super) fn new() -> Self {
        let none: Rc<[u32]> = Rc::new([]);
        Self {
            attributes: Vec::new(),
            attribute_ids: BTreeMap::new(),
            sets: vec![Rc::clone(&none)],
            set_ids: BTreeMap::from([(none, XattrSet::NONE)]),
        }
    }

    /// The set of these attributes, which are sorted by name.
    pub(super) fn intern(&mut self, attributes: Vec<Xattr>) -> XattrSet {
        let ids: Rc<[u32]> = attributes
            .into_iter()
            .map(|attribute| self.intern_one(attribute))
            .collect();
        if let Some(&set) = self.set_ids.get(&ids) {
            return set;
        }
        let set = XattrSet(u32::try_from(self.sets.len()).expect("fewer than MAX_ENTRIES"));
        self.sets.push(Rc::clone(&ids));
        self.set_ids.insert(ids, set);
        set
    }

    fn intern_one(&mut self, attribute: Xattr) -> u32 {
        if let Some(&id) = self.attribute_ids.get(&attribute) {
            return id;
        }
        let id = u32::try_from(self.attributes.len()).expect("bounded by MAX_TREE_BYTES");
        let attribute = Rc::new(attribute);
        self.attributes.push(Rc::clone(&attribute));
        self.attribute_ids.insert(attribute, id);
        id
    }

    /// The attributes of a set, as indices below [`Xattrs::len`].
    pub(crate) fn set(&self, set: XattrSet) -> impl Iterator<Item = usize> {
        self.sets[set.0 as usize].iter().map(|&id| id as usize)
    }

    /// How many different attributes there are.
    pub(crate) fn len(&self) -> usize {
        self.attributes.len()
    }

    /// One attribute.
    pub(crate) fn get(&self, index: usize) -> &Xattr {
        &self.attributes[index]
    }
}
