//! Everything that only tells: the models, how the cell is, and what can be asked.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use shoal_api::{Health, Limits, Model, ModelList, Queue, RankHealth, Service};
use shoal_engine::client::{CellState, Status};

use crate::error::ApiError;
use crate::router::Front;

pub(crate) async fn service(State(front): State<Front>) -> Json<Service> {
    Json(Service {
        service: "shoal",
        version: env!("CARGO_PKG_VERSION"),
        model: front.generator.model_name().to_owned(),
        endpoints: ENDPOINTS.to_vec(),
    })
}

/// What `GET /` lists; a test asks for each.
const ENDPOINTS: &[&str] = &[
    "GET /",
    "GET /health",
    "GET /health/live",
    "GET /queue",
    "GET /v1/models",
    "GET /v1/models/{id}",
    "POST /v1/chat/completions",
    "POST /v1/completions",
];

pub(crate) async fn live() -> &'static str {
    "live\n"
}

pub(crate) async fn health(State(front): State<Front>) -> (StatusCode, Json<Health>) {
    let cell = front.generator.client().status();
    let (code, status, reason) = match not_ready(&cell) {
        None => (StatusCode::OK, "ready", None),
        Some((status, reason)) => (StatusCode::SERVICE_UNAVAILABLE, status, Some(reason)),
    };
    let health = Health {
        status,
        reason,
        model: front.generator.model_name().to_owned(),
        world_size: front.generator.world(),
        queue: queue_of(&front, &cell),
        ranks: cell
            .ranks
            .into_iter()
            .map(|rank| RankHealth {
                rank: rank.rank.0,
                place: rank.place.machine,
                pid: rank.place.pid,
                state: rank.state.to_string(),
            })
            .collect(),
    };
    (code, Json(health))
}

/// In one word and in a sentence, why a cell does not answer; `None` when it does.
pub(crate) fn not_ready(cell: &Status) -> Option<(&'static str, String)> {
    let (status, progress) = match &cell.state {
        CellState::Starting => ("starting", "the ranks are being started".to_owned()),
        CellState::Loading {
            done_bytes,
            total_bytes,
        } => (
            "loading",
            format!("{done_bytes} of {total_bytes} bytes of the model are loaded"),
        ),
        CellState::Ready => return None,
        CellState::Lost(loss) => return Some(("lost", loss.to_string())),
        CellState::Stopping => return Some(("stopping", "the cell is being stopped".to_owned())),
    };
    // Who asks while the cell forms again wants to know what happened.
    let reason = match &cell.last_loss {
        Some(loss) => format!("{loss}; forming again: {progress}"),
        None => progress,
    };
    Some((status, reason))
}

pub(crate) async fn queue(State(front): State<Front>) -> Json<Queue> {
    Json(queue_of(&front, &front.generator.client().status()))
}

fn queue_of(front: &Front, cell: &Status) -> Queue {
    Queue {
        waiting: cell.waiting,
        running: cell.running,
        limits: cell.limits.map(|limits| Limits {
            waiting_max: limits.waiting_max,
            running_max: limits.running_max,
            context: front.generator.context(),
        }),
    }
}

pub(crate) async fn models(State(front): State<Front>) -> Json<ModelList> {
    Json(ModelList::new(vec![served(&front)]))
}

pub(crate) async fn model(
    State(front): State<Front>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, ApiError> {
    // A path that is not UTF-8 names no model.
    front.require_model(id.as_deref().map_or("", String::as_str))?;
    Ok(Json(served(&front)))
}

fn served(front: &Front) -> Model {
    let generator = &front.generator;
    Model::new(
        generator.model_name(),
        generator.created(),
        generator.context(),
    )
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use shoal_engine::client::{Client, Loss, Rank};

    use super::*;

    #[test]
    fn cell_that_forms_again_names_the_loss() {
        let mut cell = Client::new().status();
        let rank = Rank(1);
        let reason = "its connection was closed".to_owned();
        cell.last_loss = Some(Loss { rank, reason });
        let mut told = String::new();
        let loading = CellState::Loading {
            done_bytes: 1_048_356,
            total_bytes: 96_576_768,
        };
        for state in [CellState::Starting, loading, CellState::Stopping] {
            cell.state = state;
            told += &format!("{:?}\n", not_ready(&cell).expect("it is not ready"));
        }
        expect![[r#"
            ("starting", "rank 1 was lost: its connection was closed; forming again: the ranks are being started")
            ("loading", "rank 1 was lost: its connection was closed; forming again: 1048356 of 96576768 bytes of the model are loaded")
            ("stopping", "the cell is being stopped")
        "#]].assert_eq(&told);
    }
}
