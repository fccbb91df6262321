//! The optimization level: the one knob that picks the defaults of all others.

use crate::kind::{Named, OtherName};

/// How much startup time is spent for speed. A level is only a table of defaults; see `docs/levels.md`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OptimizationLevel {
    /// Operations run one by one, as the model builder wrote them; for development and debugging.
    O0,
    /// Cheap passes, and recordings of the pieces between attention operations.
    O1,
    /// Everything that has a fused form is fused, weights are laid out for their kernels, and whole decode steps are recorded. The default.
    #[default]
    O2,
    /// Bounded work that O2 would not wait for: kernel tuning and whole-step programs.
    O3,
}

impl OptimizationLevel {
    /// All levels, in ascending order.
    pub const ALL: [Self; 4] = [Self::O0, Self::O1, Self::O2, Self::O3];

    /// The level's number: 0 to 3.
    pub const fn number(self) -> u8 {
        match self {
            Self::O0 => 0,
            Self::O1 => 1,
            Self::O2 => 2,
            Self::O3 => 3,
        }
    }

    /// The next level down; `None` for O0.
    pub const fn lower(self) -> Option<Self> {
        match self {
            Self::O0 => None,
            Self::O1 => Some(Self::O0),
            Self::O2 => Some(Self::O1),
            Self::O3 => Some(Self::O2),
        }
    }
}

impl Named for OptimizationLevel {
    const ALL: &'static [Self] = &Self::ALL;
    const OTHER_NAMES: &'static [(&'static str, OtherName<Self>)] = &[
        ("0", OtherName::Means(Self::O0)),
        ("1", OtherName::Means(Self::O1)),
        ("2", OtherName::Means(Self::O2)),
        ("3", OtherName::Means(Self::O3)),
    ];

    fn name(self) -> &'static str {
        match self {
            Self::O0 => "O0",
            Self::O1 => "O1",
            Self::O2 => "O2",
            Self::O3 => "O3",
        }
    }
}

crate::kind::display_and_parse!(OptimizationLevel);
