//! From what was said to what will happen: first the layers, then the rules that look at the model and the device.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value as Json;

use crate::declaration::{Cell, Choice, Lowering, Rule, Setting, cell};
use crate::error::{Problem, SettingsError};
use crate::facts::{DeviceFacts, ModelFacts};
use crate::kind::Given;
use crate::level::OptimizationLevel;
use crate::modes::{DeviceChoice, KvCacheDtype, LoadFormat};
use crate::options::Options;
use crate::settings::{self, Settings};
use crate::source::{Resolved, Source};

/// Resolves what was said for one model on one device. Pure: the same arguments give the same settings.
///
/// # Errors
///
/// If an explicit value cannot be had on this device, for this model or beside another value.
pub fn resolve(options: &Options, model: &ModelFacts, device: &DeviceFacts) -> Result<Settings, SettingsError> {
    resolve_with(options, Some(model), Some(device))
}

/// Resolves what was said as far as can be done for the model and the device that are known.
///
/// Where a rule looks at one that is not, [`ModelFacts::assumed`] or [`DeviceFacts::assumed`] stands in and the value's
/// reason says so; no value is refused because of an assumption.
///
/// # Errors
///
/// As [`resolve`].
pub fn resolve_with(
    options: &Options,
    model: Option<&ModelFacts>,
    device: Option<&DeviceFacts>,
) -> Result<Settings, SettingsError> {
    let resolution = Resolution::new(options, model, device)?;
    let mut settings = Settings::settle(&resolution)?;
    if let Some(lower) = resolution.level.lower() {
        let mut lower_options = options.clone();
        lower_options.set_optimization_level(lower, Source::Default);
        let lower_resolution = Resolution::new(&lower_options, model, device)?;
        // What cannot be resolved a level lower is no copy of that level.
        if let Ok(mut other) = Settings::settle(&lower_resolution) {
            other.optimization_level = settings.optimization_level.clone();
            if other == settings {
                settings.optimization_level.reason = Some(resolution.same_as_lower(lower, &lower_resolution));
            }
        }
    }
    Ok(settings)
}

/// Which device was asked for: what must be known before the facts of one can be.
///
/// # Errors
///
/// If what was said cannot be read, which only a defect can cause.
pub fn device_choice(options: &Options) -> Result<Resolved<DeviceChoice>, SettingsError> {
    Resolution::new(options, None, None)?.settle(&settings::DEVICE)
}

/// Where the weights come from: what must be known before the checkpoint is opened, and so before the facts of the model are.
///
/// # Errors
///
/// If what was said cannot be read, which only a defect can cause.
pub fn load_format(options: &Options) -> Result<Resolved<LoadFormat>, SettingsError> {
    Resolution::new(options, None, None)?.settle(&settings::LOAD_FORMAT)
}

/// How keys and values are stored: what must be known before the graph of the model is built, and so before its facts are. A
/// device that can't is found when the settings are resolved.
///
/// # Errors
///
/// If what was said cannot be read, which only a defect can cause.
pub fn kv_cache_dtype(options: &Options) -> Result<KvCacheDtype, SettingsError> {
    Ok(Resolution::new(options, None, None)?.settle(&settings::KV_CACHE_DTYPE)?.value)
}

/// One resolution under way: each setting is settled once, on demand, by what was said or by its rule.
pub(crate) struct Resolution<'a> {
    options: &'a Options,
    /// The optimization level.
    pub(crate) level: OptimizationLevel,
    model: Option<&'a ModelFacts>,
    device: Option<&'a DeviceFacts>,
    assumed_model: ModelFacts,
    assumed_device: DeviceFacts,
    settled: RefCell<BTreeMap<&'static str, Settled>>,
    under_way: RefCell<Vec<&'static str>>,
    /// What the setting under way looked at although it is not known.
    assumed: RefCell<BTreeSet<Assumed>>,
}

struct Settled {
    resolved: Resolved<Json>,
    assumed: BTreeSet<Assumed>,
    lowered: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Assumed {
    Model,
    Device,
}

impl<'a> Resolution<'a> {
    fn new(
        options: &'a Options,
        model: Option<&'a ModelFacts>,
        device: Option<&'a DeviceFacts>,
    ) -> Result<Self, SettingsError> {
        let mut resolution = Self {
            options,
            level: OptimizationLevel::default(),
            model,
            device,
            assumed_model: ModelFacts::assumed(),
            assumed_device: DeviceFacts::assumed(),
            settled: RefCell::default(),
            under_way: RefCell::default(),
            assumed: RefCell::default(),
        };
        resolution.level = resolution.settle(&settings::OPTIMIZATION_LEVEL)?.value;
        Ok(resolution)
    }

    /// The model, or what is assumed of it.
    pub(crate) fn model(&self) -> &ModelFacts {
        self.model.unwrap_or_else(|| {
            self.assumed.borrow_mut().insert(Assumed::Model);
            &self.assumed_model
        })
    }

    /// The device, or what is assumed of it.
    pub(crate) fn device(&self) -> &DeviceFacts {
        self.device.unwrap_or_else(|| {
            self.assumed.borrow_mut().insert(Assumed::Device);
            &self.assumed_device
        })
    }

    /// The value that somebody said, and where; `None` if nobody did.
    pub(crate) fn said<T>(&self, setting: &'static Setting<T>) -> Result<Option<(T, &Source)>, SettingsError> {
        self.said_value(setting)
    }

    fn said_value<T>(&self, setting: &Setting<T>) -> Result<Option<(T, &Source)>, SettingsError> {
        let Some(said) = self.options.said(setting.path) else {
            return Ok(None);
        };
        let value = read_back(setting, &said.value)?;
        Ok(Some((value, &said.source)))
    }

    /// What was said of a setting of any type, and where.
    pub(crate) fn said_at(&self, path: &str) -> Option<(&Json, &Source)> {
        self.options.said(path).map(|said| (&said.value, &said.source))
    }

    /// The value of a setting, working it out where that was not yet done.
    pub(crate) fn settle<T: Clone + PartialEq>(&self, setting: &Setting<T>) -> Result<Resolved<T>, SettingsError> {
        if let Some(settled) = self.settled.borrow().get(setting.path) {
            self.assumed.borrow_mut().extend(&settled.assumed);
            return Ok(Resolved {
                value: read_back(setting, &settled.resolved.value)?,
                source: settled.resolved.source.clone(),
                reason: settled.resolved.reason.clone(),
            });
        }
        if self.under_way.borrow().contains(&setting.path) {
            return Err(Problem::internal(setting.path, "its rule asks for its own value"));
        }
        self.under_way.borrow_mut().push(setting.path);
        let outer = self.assumed.take();
        let worked_out = self.work_out(setting);
        let assumed = self.assumed.replace(outer);
        self.under_way.borrow_mut().pop();
        let (mut resolved, lowered) = worked_out?;
        if !assumed.is_empty() && !resolved.source.is_explicit() {
            let missing = match (assumed.contains(&Assumed::Model), assumed.contains(&Assumed::Device)) {
                (true, true) => "no model and no device given",
                (true, false) => "no model given",
                _ => "no device given",
            };
            resolved.reason = Some(match resolved.reason {
                Some(reason) => format!("{reason} (assumed: {missing})"),
                None => format!("assumed: {missing}"),
            });
        }
        self.assumed.borrow_mut().extend(&assumed);
        self.settled.borrow_mut().insert(
            setting.path,
            Settled {
                resolved: Resolved {
                    value: (setting.kind.write)(&resolved.value),
                    source: resolved.source.clone(),
                    reason: resolved.reason.clone(),
                },
                assumed,
                lowered,
            },
        );
        Ok(resolved)
    }

    /// The value of a setting and whether it was lowered.
    fn work_out<T: Clone + PartialEq>(&self, setting: &Setting<T>) -> Result<(Resolved<T>, bool), SettingsError> {
        if let Some(forced) = self.forced(setting)? {
            return Ok((forced, false));
        }
        let mut resolved = match self.said_value(setting)? {
            Some((value, source)) => Resolved { value, source: source.clone(), reason: None },
            None => self.default(setting)?,
        };
        let Some(limit) = setting.limit else {
            return Ok((resolved, false));
        };
        let by_rule = self.assumed.take();
        let found = limit(&resolved.value, self)?;
        let by_limit = self.assumed.replace(by_rule);
        let explicit = resolved.source.is_explicit();
        let Some(lowering) = found.filter(|_| !explicit || by_limit.is_empty()) else {
            return Ok((resolved, false));
        };
        self.assumed.borrow_mut().extend(by_limit);
        let Lowering { value, because, instead } = lowering;
        let shown = (setting.kind.show)(&resolved.value);
        if explicit {
            return Err(Problem::Impossible {
                setting: setting.path.to_owned(),
                value: shown,
                origin: resolved.source,
                because,
                instead,
            }
            .into());
        }
        resolved.reason = Some(format!("instead of {shown}: {because}"));
        resolved.value = value;
        Ok((resolved, true))
    }

    /// The value that a switch decides; an error if somebody said another one.
    fn forced<T: Clone + PartialEq>(&self, setting: &Setting<T>) -> Result<Option<Resolved<T>>, SettingsError> {
        let Some(forced) = &setting.forced else {
            return Ok(None);
        };
        let switch = self.settle(forced.by)?;
        if !switch.value {
            return Ok(None);
        }
        let shown = (setting.kind.show)(&forced.value);
        let because = format!("{} is on ({})", forced.by.path, switch.source);
        if let Some((value, origin)) = self.said_value(setting)?
            && value != forced.value
        {
            return Err(Problem::Impossible {
                setting: setting.path.to_owned(),
                value: (setting.kind.show)(&value),
                origin: origin.clone(),
                because: format!("{because}, which forces {shown}"),
                instead: format!("drop one of the two, or write {}={shown}", setting.path),
            }
            .into());
        }
        Ok(Some(Resolved { value: forced.value.clone(), source: Source::Forced, reason: Some(because) }))
    }

    /// The default of a setting, by its rule.
    fn default<T: Clone>(&self, setting: &Setting<T>) -> Result<Resolved<T>, SettingsError> {
        let (choice, otherwise) = match &setting.default {
            Rule::Constant(value) => (Choice::of(value.clone()), Source::Default),
            Rule::Computed { choose, .. } => (choose(self)?, Source::Default),
            Rule::Levels(cells) => {
                let choice = match cell(cells, self.level) {
                    Cell::Is(value) | Cell::Unused(value) => Choice::of(value.clone()),
                    Cell::When { choose, .. } => choose(self),
                };
                (choice, Source::Level(self.level))
            }
        };
        Ok(Resolved { value: choice.value, source: choice.source.unwrap_or(otherwise), reason: choice.reason })
    }

    /// Says in one line that the level gives what the one below it gives, and what was lowered to make it so.
    fn same_as_lower(&self, lower: OptimizationLevel, lower_resolution: &Resolution<'_>) -> String {
        let lower_settled = lower_resolution.settled.borrow();
        let lowered: Vec<&str> = self
            .settled
            .borrow()
            .iter()
            .filter(|(path, settled)| settled.lowered && !lower_settled.get(*path).is_some_and(|other| other.lowered))
            .map(|(path, _)| *path)
            .collect();
        let level = self.level;
        match lowered.as_slice() {
            [] => format!("{level} does what {lower} does, given the other settings"),
            paths => format!("{level} does what {lower} does here: {} cannot be had", paths.join(" and ")),
        }
    }
}

impl<T> Choice<T> {
    /// A value that needs no reason.
    pub(crate) const fn of(value: T) -> Self {
        Self { value, source: None, reason: None }
    }

    /// A value and why it was chosen.
    pub(crate) const fn because(value: T, reason: String) -> Self {
        Self { value, source: None, reason: Some(reason) }
    }

    /// The same from another source.
    pub(crate) fn from(self, source: Source) -> Self {
        Self { source: Some(source), ..self }
    }
}

/// Reads a value in its written form, which only a defect of the declaration can make fail.
fn read_back<T>(setting: &Setting<T>, written: &Json) -> Result<T, SettingsError> {
    (setting.kind.read)(&setting.kind, Given::Json(written)).map_err(|wrong| {
        Problem::internal(setting.path, &format!("its written form {written} cannot be read back: {wrong}"))
    })
}
