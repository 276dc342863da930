//! Numbers of rules, for the metrics. Must not be needed for anything else.

use crate::backend::Rules;

use super::shape::{self, Shape};
use super::shared::Table;

/// Numbers of rules; mangle has none of ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// In the nat table.
    pub nat: usize,
    /// In the filter table.
    pub filter: usize,
}

// === impl Count ===

impl Count {
    /// The rules that do not depend on Services.
    pub fn fixed(shape: &Shape) -> Self {
        let of = |table| {
            shape.fixed(table).iter().map(|chain| chain.rules.len()).sum::<usize>()
                + shape.shared(table).map(|shared| shape.head(shared).len() + shape.tail(shared).len()).sum::<usize>()
                + shape::jumps(table).count()
        };
        Self { nat: of(Table::Nat), filter: of(Table::Filter) }
    }

    /// That of a table.
    pub fn of(&mut self, table: Table) -> &mut usize {
        if table == Table::Nat { &mut self.nat } else { &mut self.filter }
    }

    /// What there is, and what of it was written.
    pub fn beside(self, written: Self) -> Vec<Rules> {
        let table = |table: Table, owned, written| Rules { table: table.as_str(), owned, written };
        vec![table(Table::Nat, self.nat, written.nat), table(Table::Filter, self.filter, written.filter)]
    }
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, more: Self) {
        self.nat += more.nat;
        self.filter += more.filter;
    }
}

impl std::ops::SubAssign for Count {
    fn sub_assign(&mut self, less: Self) {
        self.nat -= less.nat;
        self.filter -= less.filter;
    }
}
