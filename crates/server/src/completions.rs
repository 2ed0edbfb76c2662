//! `POST /v1/completions`.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use futures_util::future::try_join_all;
use serde::Serialize;
use shoal_api::completion::{self, Choice, Completion};
use shoal_api::{FinishReason, Null, Performance, Usage};

use crate::error::ApiError;
use crate::generator::unix_seconds;
use crate::random;
use crate::reply::{self, News, Tail, What, Wording};
use crate::router::{Body, Front};

pub(crate) async fn create(State(front): State<Front>, body: Body) -> Result<Response, ApiError> {
    let request = body.parse(completion::parse)?;
    front.require_model(&request.model)?;
    // Each prompt takes a place in the queue: more than there are would be refused even by an idle cell.
    if let Some(limits) = front.generator.client().status().limits
        && request.prompts.len() > limits.open_max()
    {
        let message = format!(
            "Invalid value for 'prompt': at most {} prompts fit this server's batch and queue, but got {}.",
            limits.open_max(),
            request.prompts.len()
        );
        let error = ApiError::client(StatusCode::BAD_REQUEST, "invalid_value", message);
        return Err(error.about("prompt"));
    }
    let options = request.options;
    let begin = |prompt| front.generator.complete(prompt, options.clone());
    let mut choices = try_join_all(request.prompts.into_iter().map(begin)).await?;
    for choice in &mut choices {
        front.limit_time(choice);
    }
    let wording = CompletionWording {
        id: random::id("cmpl-"),
        created: unix_seconds(),
        model: request.model,
    };
    match request.stream {
        Some(options) => Ok(reply::streamed(choices, options, wording)),
        None => reply::whole(choices, wording).await,
    }
}

struct CompletionWording {
    id: String,
    created: u64,
    model: String,
}

impl CompletionWording {
    fn completion(&self, choices: Vec<Choice>, tail: Tail) -> Completion {
        Completion {
            id: self.id.clone(),
            object: "text_completion",
            created: self.created,
            model: self.model.clone(),
            choices,
            usage: tail.usage,
            performance: tail.performance,
        }
    }
}

impl Wording for CompletionWording {
    fn chunk(&self, news: Option<News>, tail: Tail) -> impl Serialize {
        let choice = news.map(|news| {
            let (text, reason) = match news.what {
                What::GoesOn(text) => (text, None),
                What::Ends(reason) => (String::new(), Some(reason)),
            };
            choice(news.index, text, reason)
        });
        self.completion(choice.into_iter().collect(), tail)
    }

    fn whole(
        &self,
        choices: Vec<(String, FinishReason)>,
        usage: Usage,
        performance: Performance,
    ) -> impl Serialize {
        let choices = choices
            .into_iter()
            .enumerate()
            .map(|(index, (text, reason))| choice(index, text, Some(reason)));
        let tail = Tail {
            usage: Some(Some(usage)),
            performance: Some(performance),
        };
        self.completion(choices.collect(), tail)
    }
}

fn choice(index: usize, text: String, finish_reason: Option<FinishReason>) -> Choice {
    Choice {
        text,
        index,
        logprobs: Null,
        finish_reason,
    }
}
