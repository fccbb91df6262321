//! Why a server could not start or go on.

use std::io;

/// Why a server could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A setting of the server is wrong.
    #[error("server setting `{field}`: {problem}")]
    Config {
        /// Which.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The name to listen at is unknown.
    #[error("cannot listen at {host}: the name has no address ({cause}); give an address such as 127.0.0.1")]
    UnknownHost {
        /// The name.
        host: String,
        /// Why.
        cause: String,
    },
    /// Others could reach the address, and there is no key.
    #[error(
        "refusing to listen at {address} without an API key, as others can reach it; set a key, listen at 127.0.0.1, or \
         explicitly allow it"
    )]
    PublicWithoutKey {
        /// The address.
        address: String,
    },
    /// The socket could not be opened.
    #[error("cannot listen at {address}: {cause}{advice}")]
    Bind {
        /// Where.
        address: String,
        /// Why.
        cause: io::Error,
        /// What to do.
        advice: &'static str,
    },
    /// Something of the operating system failed.
    #[error("{action}: {cause}")]
    System {
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        cause: io::Error,
    },
    /// The metrics could not be set up.
    #[error("setting up metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The model could not be loaded.
    #[error("the model could not be loaded: {0}")]
    Model(String),
    /// The engine died while it served.
    #[error("the engine has stopped: {0}")]
    EngineDead(String),
}
