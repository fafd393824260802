//! A request's body as JSON, and what is wrong with it in OpenAI's shape.

use axum::extract::{FromRequest, Request};
use serde::de::DeserializeOwned;

use crate::error::{ApiError, Kind};
use crate::state::State;

/// The body, in the time and size that the settings allow; anything else is an [`ApiError`].
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned> FromRequest<State> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &State) -> Result<Json<T>, ApiError> {
        let bytes = crate::request::whole(request.into_body(), state).await?;
        match serde_json::from_slice(&bytes) {
            Ok(value) => Ok(Json(value)),
            Err(error) => Err(ApiError::new(Kind::Invalid, format!("the body: {error}"))),
        }
    }
}
