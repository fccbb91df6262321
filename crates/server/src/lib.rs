//! The OpenAI-compatible HTTP server in front of the engine.
//!
//! [`Server::bind`] opens the socket, [`Server::run`] serves it at once, and a [`ServerHandle`] brings the model when it is loaded
//! and ends the server. Between them and the engine lies nothing but token ids: the server knows no device.
//!
//! ```no_run
//! use allotrope_engine::Llm;
//! use allotrope_server::{Server, ServerConfig, signals};
//!
//! # async fn example() -> Result<(), allotrope_server::ServerError> {
//! let server = Server::bind(ServerConfig::default())?;
//! let handle = server.handle();
//! signals(handle.clone())?;
//! std::thread::spawn(move || match Llm::builder("tests/models/tiny-chat").build_async() {
//!     Ok(llm) => handle.set_model(llm),
//!     Err(error) => Ok(handle.fail(&error.to_string())),
//! });
//! server.run().await
//! # }
//! ```

mod body;
mod config;
mod connection;
mod error;
mod generation;
mod lifecycle;
mod listener;
mod metrics;
mod middleware;
mod model;
mod prompt;
pub mod protocol;
mod routes;
mod scores;
mod server;
mod signals;
mod state;
pub mod tools;

pub use config::{HttpLimits, MAX_TIME, ServerConfig};
pub use error::ServerError;
pub use server::{Server, ServerHandle};
pub use signals::signals;
