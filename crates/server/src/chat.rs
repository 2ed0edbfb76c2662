//! `POST /v1/chat/completions`.

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use shoal_api::chat::{self, ChatChunk, ChatCompletion, Choice, ChunkChoice, Delta, Reply, Role};
use shoal_api::{FinishReason, Null, Performance, Usage};

use crate::error::ApiError;
use crate::generator::unix_seconds;
use crate::random;
use crate::reply::{self, News, Tail, What, Wording};
use crate::router::{Body, Front};

pub(crate) async fn create(State(front): State<Front>, body: Body) -> Result<Response, ApiError> {
    let request = body.parse(chat::parse)?;
    front.require_model(&request.model)?;
    let mut choice = front
        .generator
        .chat(request.messages, request.options)
        .await?;
    front.limit_time(&mut choice);
    let wording = ChatWording {
        id: random::id("chatcmpl-"),
        created: unix_seconds(),
        model: request.model,
    };
    match request.stream {
        Some(options) => Ok(reply::streamed(vec![choice], options, wording)),
        None => reply::whole(vec![choice], wording).await,
    }
}

struct ChatWording {
    id: String,
    created: u64,
    model: String,
}

impl Wording for ChatWording {
    fn chunk(&self, news: Option<News>, tail: Tail) -> impl Serialize {
        ChatChunk {
            id: self.id.clone(),
            object: "chat.completion.chunk",
            created: self.created,
            model: self.model.clone(),
            choices: news.map(chunk_choice).into_iter().collect(),
            usage: tail.usage,
            performance: tail.performance,
        }
    }

    fn whole(
        &self,
        choices: Vec<(String, FinishReason)>,
        usage: Usage,
        performance: Performance,
    ) -> impl Serialize {
        let choice = |(index, (content, finish_reason))| Choice {
            index,
            message: Reply {
                role: Role::Assistant,
                content,
                refusal: Null,
            },
            logprobs: Null,
            finish_reason,
        };
        ChatCompletion {
            id: self.id.clone(),
            object: "chat.completion",
            created: self.created,
            model: self.model.clone(),
            choices: choices.into_iter().enumerate().map(choice).collect(),
            usage,
            performance,
        }
    }
}

fn chunk_choice(news: News) -> ChunkChoice {
    let (content, finish_reason) = match news.what {
        What::GoesOn(text) => (Some(text), None),
        What::Ends(reason) => (None, Some(reason)),
    };
    ChunkChoice {
        index: news.index,
        delta: Delta {
            role: news.first.then_some(Role::Assistant),
            content,
        },
        logprobs: Null,
        finish_reason,
    }
}
