//! What a declaration of a setting consists of. The declarations themselves are in `settings.rs`.

use serde_json::Value as Json;

use crate::error::SettingsError;
use crate::kind::{Given, Kind};
use crate::level::OptimizationLevel;
use crate::resolve::Resolution;
use crate::source::Source;

/// One setting. Every field must be given, so that a setting without a rule does not compile.
pub(crate) struct Setting<T: 'static> {
    /// The dotted path, such as `compilation.pass_config.fuse_add_norm`.
    pub(crate) path: &'static str,
    /// The lines of the declaration's doc comment: the first is the summary.
    pub(crate) documentation: &'static [&'static str],
    /// What the values are and how they are read and written.
    pub(crate) kind: Kind<T>,
    /// Where the value comes from if nobody says one.
    pub(crate) default: Rule<T>,
    /// A switch that decides the value, whatever was said.
    pub(crate) forced: Option<Forced<T>>,
    /// What may stand against a value. A default is lowered to what can be had; an explicit value is refused.
    pub(crate) limit: Option<Limit<T>>,
    /// How the command line says it, other than by path.
    pub(crate) flag: Flag,
    /// Former or foreign paths that still mean this setting, with a warning.
    pub(crate) former_paths: &'static [&'static str],
}

/// Where a value comes from if nobody says one.
pub(crate) enum Rule<T: 'static> {
    /// The same at every level.
    Constant(T),
    /// One cell for each level, O0 first.
    Levels([Cell<T>; 4]),
    /// Worked out from the facts and from other settings, at every level alike.
    Computed {
        /// The rule, for the documentation.
        words: &'static str,
        /// The rule itself.
        choose: fn(&Resolution<'_>) -> Result<Choice<T>, SettingsError>,
    },
}

/// A cell of the level table.
pub(crate) enum Cell<T: 'static> {
    /// This value.
    Is(T),
    /// This value, which has no effect at this level unless another setting gives it one.
    Unused(T),
    /// Whatever the rule says of the model and the device.
    When {
        /// The rule, for the documentation.
        words: &'static str,
        /// The rule itself.
        choose: fn(&Resolution<'_>) -> Choice<T>,
    },
}

/// What a rule chose.
pub(crate) struct Choice<T> {
    /// The value.
    pub(crate) value: T,
    /// Where it comes from, if not from the level or the setting's own default.
    pub(crate) source: Option<Source>,
    /// Why.
    pub(crate) reason: Option<String>,
}

/// What may stand against a value: `None` if nothing does, else what can be had instead.
pub(crate) type Limit<T> = fn(&T, &Resolution<'_>) -> Result<Option<Lowering<T>>, SettingsError>;

/// What can be had instead of a value.
pub(crate) struct Lowering<T> {
    /// The value that can be had.
    pub(crate) value: T,
    /// What stands against the other one, to follow "cannot be X: " and "instead of X: ".
    pub(crate) because: String,
    /// What a person who asked for it should write instead.
    pub(crate) instead: String,
}

/// A switch that decides a value, whatever was said.
pub(crate) struct Forced<T: 'static> {
    /// The switch.
    pub(crate) by: &'static Setting<bool>,
    /// The value while it is on.
    pub(crate) value: T,
}

/// How the command line says a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flag {
    /// By its path in `-cc.…` alone.
    Dotted,
    /// `--name VALUE`, with `-X` where there is a short form.
    Value {
        /// The long name, without dashes.
        long: &'static str,
        /// Other long names, not listed in the help.
        aliases: &'static [&'static str],
        /// The short name, without its dash.
        short: Option<char>,
    },
    /// `--name`, or `--no-name`, which is `--name=false`.
    Switch {
        /// The long name, without dashes.
        long: &'static str,
    },
    /// `--name VALUE VALUE …`.
    Values {
        /// The long name, without dashes.
        long: &'static str,
    },
}

impl Flag {
    /// The long name without dashes, where there is one.
    pub(crate) const fn long(self) -> Option<&'static str> {
        match self {
            Self::Dotted => None,
            Self::Value { long, .. } | Self::Switch { long } | Self::Values { long } => Some(long),
        }
    }
}

/// A setting of any type: what the command line, files, environment, schema, documents and tests need of it.
pub(crate) trait Declared: Sync {
    /// The dotted path.
    fn path(&self) -> &'static str;
    /// The lines of the documentation.
    fn documentation(&self) -> &'static [&'static str];
    /// How the command line says it.
    fn flag(&self) -> Flag;
    /// Former paths.
    fn former_paths(&self) -> &'static [&'static str];
    /// Reads a value and gives it in its one written form.
    fn canonical(&self, given: Given<'_>) -> Result<Json, String>;
    /// Shows a value in its written form to a person.
    fn show(&self, written: &Json) -> String;
    /// The JSON Schema of its values.
    fn schema(&self) -> Json;
    /// What the values are, in words.
    fn words(&self) -> String;
    /// What stands for the value in `--help`.
    fn placeholder(&self) -> &'static str;
    /// The default in words, if it is the same rule at all levels.
    fn default_words(&self) -> Option<String>;
    /// The cell of the level table, in words, if the setting has a row there.
    fn level_words(&self, level: OptimizationLevel) -> Option<String>;
    /// The names of the values, where there are only a few.
    fn names(&self) -> Vec<&'static str>;
}

/// The cell of `level` in a row of the level table.
pub(crate) const fn cell<T>(cells: &[Cell<T>; 4], level: OptimizationLevel) -> &Cell<T> {
    let [o0, o1, o2, o3] = cells;
    match level {
        OptimizationLevel::O0 => o0,
        OptimizationLevel::O1 => o1,
        OptimizationLevel::O2 => o2,
        OptimizationLevel::O3 => o3,
    }
}

impl<T: Clone + PartialEq + Sync + 'static> Declared for Setting<T> {
    fn path(&self) -> &'static str {
        self.path
    }

    fn documentation(&self) -> &'static [&'static str] {
        self.documentation
    }

    fn flag(&self) -> Flag {
        self.flag
    }

    fn former_paths(&self) -> &'static [&'static str] {
        self.former_paths
    }

    fn canonical(&self, given: Given<'_>) -> Result<Json, String> {
        (self.kind.read)(&self.kind, given).map(|value| (self.kind.write)(&value))
    }

    fn show(&self, written: &Json) -> String {
        (self.kind.read)(&self.kind, Given::Json(written))
            .map_or_else(|_| written.to_string(), |value| (self.kind.show)(&value))
    }

    fn schema(&self) -> Json {
        (self.kind.schema)(&self.kind)
    }

    fn words(&self) -> String {
        (self.kind.words)(&self.kind)
    }

    fn placeholder(&self) -> &'static str {
        self.kind.placeholder
    }

    fn default_words(&self) -> Option<String> {
        match &self.default {
            Rule::Constant(value) => Some((self.kind.show)(value)),
            Rule::Levels(_) => None,
            Rule::Computed { words, .. } => Some((*words).to_owned()),
        }
    }

    fn level_words(&self, level: OptimizationLevel) -> Option<String> {
        match &self.default {
            Rule::Constant(_) | Rule::Computed { .. } => None,
            Rule::Levels(cells) => Some(match cell(cells, level) {
                Cell::Is(value) => (self.kind.show)(value),
                Cell::Unused(_) => "–".to_owned(),
                Cell::When { words, .. } => (*words).to_owned(),
            }),
        }
    }

    fn names(&self) -> Vec<&'static str> {
        (self.kind.names)()
    }
}

/// Declares a group of settings: its type, one static for each setting, and the walk over them in order.
///
/// The doc comment of a setting is its documentation everywhere. Its path is the group's path and the name of its field.
macro_rules! settings_group {
    (
        $(#[doc = $group_doc:literal])+
        $group:ident at $prefix:literal {
            $(
                $(#[doc = $doc:literal])+
                $field:ident: $type:ty = $name:ident { $($body:tt)* }
            )*
            $(
                group $(#[doc = $inner_doc:literal])+ $inner:ident: $inner_type:ident;
            )*
        }
    ) => {
        $(
            pub(crate) static $name: $crate::declaration::Setting<$type> = $crate::declaration::Setting {
                path: concat!($prefix, stringify!($field)),
                documentation: &[$($doc),+],
                $($body)*
            };
        )*

        $(#[doc = $group_doc])+
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub struct $group {
            $(
                $(#[doc = $doc])+
                pub $field: $crate::source::Resolved<$type>,
            )*
            $(
                $(#[doc = $inner_doc])+
                pub $inner: $inner_type,
            )*
        }

        impl $group {
            pub(crate) fn settle(
                resolution: &$crate::resolve::Resolution<'_>,
            ) -> Result<Self, $crate::error::SettingsError> {
                Ok(Self {
                    $($field: resolution.settle(&$name)?,)*
                    $($inner: $inner_type::settle(resolution)?,)*
                })
            }

            /// Appends the declarations of the group and of those within, in order.
            pub(crate) fn declare(all: &mut Vec<&'static dyn $crate::declaration::Declared>) {
                $(all.push(&$name);)*
                $($inner_type::declare(all);)*
            }

            /// Appends what was resolved, in the order of `declare`.
            pub(crate) fn list(&self, rows: &mut Vec<$crate::settings::Row>) {
                $(rows.push($crate::settings::Row::of(&$name, &self.$field));)*
                $(self.$inner.list(rows);)*
            }
        }
    };
}
pub(crate) use settings_group;
